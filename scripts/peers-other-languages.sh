#!/bin/sh
# Measures the servers of other languages beside bigiron: the TypeScript SDK on Node and FastMCP on Python, each with the
# same tool, by the same generator, in turns on one core. Installs them under target/ and needs the network for that the
# first time. What is missing here (Node, Python) is left out, and said.
#
# Usage: scripts/peers-other-languages.sh [options of the throughput bench]
set -eu
cd "$(dirname "$0")/.."
sources=benches/peers/other-languages
home=$PWD/target/other-languages
mkdir -p "$home"
cp "$sources"/* "$home"

others=0
if command -v node >/dev/null && command -v npm >/dev/null; then
    (cd "$home" && npm install --no-audit --no-fund --silent)
    version=$(cd "$home" && node -p "require('./node_modules/@modelcontextprotocol/server/package.json').version")
    set -- --other "TypeScript SDK $version=node $home/echo.mjs {port}" "$@"
    others=$((others + 1))
else
    echo "left out: the TypeScript SDK (no node, or no npm)" >&2
fi
if python3 -m venv "$home/python" 2>/dev/null; then
    "$home/python/bin/pip" install --quiet --disable-pip-version-check -r "$home/requirements.txt"
    version=$("$home/python/bin/python" -c 'import importlib.metadata as m; print(m.version("fastmcp"))')
    set -- --other "FastMCP $version=$home/python/bin/python $home/echo.py {port}" "$@"
    others=$((others + 1))
else
    echo "left out: FastMCP (no python3, or it lacks venv)" >&2
fi
if [ "$others" = 0 ]; then
    echo "neither Node nor Python is here: nothing to measure" >&2
    exit 1
fi
exec cargo bench --bench throughput -- --rows modern-echo --skip rmcp-sessions,tower-mcp "$@"
