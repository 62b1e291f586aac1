#!/usr/bin/env bash
# Installs what the tests need and this machine lacks: Debian packages, rustfmt and clippy, the official
# JavaScript and Python clients, both conformance suites. Needs Rust, Node with npm, and Python to start from.
# Runs in well under a second when everything is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
clients=tests/clients

# How to see that it is there | Debian package | what it is for
debian_packages=(
  'command -v cc               | build-essential | compiles the SQLite that query_sql carries, and links everything'
  'command -v make             | build-essential | build scripts of C dependencies'
  'command -v pgrep            | procps          | tests look for processes that a server left behind'
  'command -v taskset          | util-linux      | benchmarks put server and generator on different cores'
  'command -v curl             | curl            | the call that the README shows is a test'
  'command -v redis-server     | redis-server    | the Redis that several instances share'
  'command -v redis-cli        | redis-tools     | asks that Redis what is in it'
  'command -v haproxy          | haproxy         | the balancer that deploy/haproxy.cfg is for'
  'command -v redis-sentinel   | redis-sentinel  | sentinels, for the tests of a failover'
  'test -x /usr/sbin/nginx    | nginx-light     | a balancer in front of several instances'
  'python3 -c "import ensurepip" | python3-venv  | the virtual environment of the Python clients'
)

fail() {
  printf 'setup-tests: %s\n' "$*" >&2
  exit 1
}

need() { # command, what it must be able to do, how to get it
  command -v "$1" >/dev/null || fail "$1 is missing ($2). $3"
}

install_debian_packages() {
  local entry probe package reason
  local -a missing=()
  for entry in "${debian_packages[@]}"; do
    IFS='|' read -r probe package reason <<<"$entry"
    package=${package// /}
    bash -c "$probe" >/dev/null 2>&1 && continue
    printf 'setup-tests: needs %s:%s\n' "$package" "$reason"
    [[ " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0

  command -v apt-get >/dev/null ||
    fail "no apt-get here: install the equivalent of these Debian packages: ${missing[*]}"
  local -a as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "run as root: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

install_rust_components() {
  local component
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 && continue
    need rustup "it installs cargo $component" "Install cargo $component the way you installed Rust."
    rustup component add "${component/#fmt/rustfmt}"
  done
}

# Runs a command unless it succeeded before for the same contents of these files.
unless_current() { # stamp file, key, command...
  local stamp=$1 key=$2
  shift 2
  [[ -f $stamp && $(<"$stamp") == "$key" ]] && return 0
  "$@"
  printf '%s\n' "$key" >"$stamp"
}

install_javascript() {
  local packaged
  (cd "$clients" && npm ci --loglevel=error)
  # npm 9 loses this link: the package of the other architecture carries a program of the same name.
  for packaged in "$clients"/node_modules/node-*/bin/node; do
    if "$packaged" --version >/dev/null 2>&1; then
      ln -sf "../${packaged#"$clients"/node_modules/}" "$clients/node_modules/.bin/node"
    fi
  done
}

install_python() {
  python3 -m venv --clear "$clients/.venv"
  "$clients/.venv/bin/pip" install --quiet --disable-pip-version-check -r "$clients/requirements.txt"
}

need cargo 'it builds everything' 'Get it from https://rustup.rs.'
need node 'it installs the JavaScript clients' 'Install Node 20 or newer: https://nodejs.org/en/download.'
need npm 'it installs the JavaScript clients' 'Install it with Node: https://nodejs.org/en/download.'
need python3 'it runs the Python clients' 'Install Python 3.10 or newer, for example: apt-get install python3.'
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "python3 is $(python3 --version 2>&1), and the Python clients need 3.10 or newer."

install_debian_packages
install_rust_components
unless_current "$clients/node_modules/.installed" \
  "$(cat "$clients"/package.json "$clients"/package-lock.json | sha256sum)" install_javascript
unless_current "$clients/.venv/.installed" \
  "$(python3 --version; sha256sum <"$clients/requirements.txt")" install_python

# The suites and the Inspector need Node 22; it comes as a package, whatever Node this machine has.
"$clients/node_modules/.bin/node" --version >/dev/null 2>&1 ||
  fail "there is no packaged Node 22 for $(uname -sm): link a Node 22 or newer to $clients/node_modules/.bin/node"
echo "setup-tests: ready ($("$clients/node_modules/.bin/node" --version), $("$clients/.venv/bin/python" --version))"
