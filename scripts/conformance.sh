#!/usr/bin/env bash
# Official MCP conformance: runs every scenario for servers (tests/clients/conformance.mjs has the list) against two
# servers with the same tools, examples/everything (our own way to write them) and examples/everything_hosted (a plain
# rmcp handler). For each: builds it, starts it on a free port, prints a table, and stops it.
# BIGIRON_CONFORMANCE_URL=http://127.0.0.1:PORT/mcp tests a server that runs already instead.
set -euo pipefail
cd "$(dirname "$0")/.."
node=tests/clients/node_modules/.bin/node
start_limit_ds=100 # tenths of a second until /health must answer
stop_limit_ds=150  # and after SIGTERM, until the process must be gone

fail() {
  printf 'conformance: %s\n' "$*" >&2
  exit 1
}

[[ -x $node ]] || fail "no $node: run scripts/setup-tests.sh first"
if [[ -n ${BIGIRON_CONFORMANCE_URL:-} ]]; then
  exec "$node" tests/clients/conformance.mjs "$BIGIRON_CONFORMANCE_URL"
fi

cargo build --locked --quiet --example everything --example everything_hosted
log=$(mktemp)
server=
cleanup() {
  if [[ -n $server ]] && kill -KILL "$server" 2>/dev/null; then wait "$server" 2>/dev/null || true; fi
  rm -f "$log"
}
trap cleanup EXIT

free_port() {
  "$node" -e '
    const server = require("node:net").createServer().listen(0, "127.0.0.1", () => {
      console.log(server.address().port);
      server.close();
    });'
}
wait_until() { # tenths of a second, command...
  local left
  for ((left = $1; left > 0; left--)); do
    "${@:2}" && return 0
    sleep 0.1
  done
  return 1
}
gone() { ! kill -0 "$server" 2>/dev/null; }
answers() { curl -fsS -o /dev/null --max-time 1 "http://127.0.0.1:$port/health" 2>/dev/null; }
started() { gone || answers; }

verdict=0
for example in everything everything_hosted; do
  printf '\nconformance of examples/%s\n' "$example"
  port=$(free_port)
  "target/debug/examples/$example" --listen "127.0.0.1:$port" --set server.admin_listen= >"$log" 2>&1 &
  server=$!
  wait_until "$start_limit_ds" started || fail "no answer on 127.0.0.1:$port/health: $(<"$log")"
  gone && fail "the server ended at once: $(<"$log")"

  "$node" tests/clients/conformance.mjs "http://127.0.0.1:$port/mcp" || verdict=$?
  gone && fail "the server died during the run: $(<"$log")"

  kill -TERM "$server"
  wait_until "$stop_limit_ds" gone || fail "the server still runs long after SIGTERM: $(<"$log")"
  wait "$server" || fail "the server ended with $? after SIGTERM: $(<"$log")"
  server=
done
exit "$verdict"
