#!/bin/sh
# Builds bigiron with profile-guided optimisation: once with counters, a few minutes under the load of `bigiron bench`, and
# once more with what was counted. Writes target/pgo/bigiron. It takes two release builds; `cargo build --release` needs
# none of this. Needs rustup's llvm-tools, which it installs when they are missing.
#
# Whether it is worth it on your machine says the throughput bench, which prints what it measured:
#   cargo bench --bench throughput -- --rows modern-echo --bigiron target/release/bigiron
#   cargo bench --bench throughput -- --rows modern-echo --bigiron target/pgo/bigiron
set -eu
cd "$(dirname "$0")/.."
home=$PWD/target/pgo
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || rustup component add llvm-tools
[ -x "$profdata" ] || { echo "llvm-profdata is missing: rustup component add llvm-tools" >&2; exit 1; }

# With --target the flags reach the program alone, and not the build scripts.
build() { # flags
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --locked --bin bigiron --target "$host" --target-dir "$home"
}

rm -rf "$home/counts" "$home/merged.profdata"
mkdir -p "$home/counts"
build "-Cprofile-generate=$home/counts"
counting=$home/$host/release/bigiron
# What a server mostly does. The generator counts too, in functions that the server does not have.
train() { # options of bigiron bench
    (cd "$home" && LLVM_PROFILE_FILE="$home/counts/%p-%m.profraw" "$counting" bench --duration 5s --warmup 0s --repeats 0 "$@")
}
train --tool echo
train --tool echo --mode sessions
train --tool echo --connections 1
train --tool burn --arguments '{"ms":1}'
"$profdata" merge -o "$home/merged.profdata" "$home/counts"
# The counting program is built with other flags than the last one, so nothing of it is taken over.
build "-Cprofile-use=$home/merged.profdata"
cp "$home/$host/release/bigiron" "$home/bigiron"
ls -l "$home/bigiron"
