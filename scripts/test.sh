#!/usr/bin/env bash
# Everything that must hold before a change is done: formatting, lints, all tests, official conformance.
# Installs what the tests need first. Stops at the first step that fails; ends with each step's duration.
set -euo pipefail
cd "$(dirname "$0")/.."

steps=()
summary() {
  printf '\n'
  printf '%s\n' "${steps[@]}"
  printf '%4d s  in all\n' "$SECONDS"
}
trap summary EXIT

step() { # name, command...
  local name=$1 began=$SECONDS verdict=ok status=0
  printf '\n== %s\n' "$name"
  "${@:2}" || status=$?
  ((status == 0)) || verdict="FAILED ($status)"
  steps+=("$(printf '%4d s  %-12s %s' $((SECONDS - began)) "$name" "$verdict")")
  return "$status"
}

step setup scripts/setup-tests.sh
step formatting cargo fmt --check
step clippy cargo clippy --locked --all-targets -- -D warnings
step tests cargo test --locked
step release cargo build --locked --release --bin bigiron
step conformance scripts/conformance.sh
