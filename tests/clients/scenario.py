"""What each Python client program does once it is connected: list, search, echo, a failing call.

Connecting, and what is particular to one client library, stays in that client's own file.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

# Tools that bigiron serves without any configuration.
TOOLS = ["search_text", "read_file", "query_json", "query_sql", "echo", "burn"]

MODERN = "2026-07-28"
LEGACY = "2025-11-25"

# How a client is told to connect, and the revision that this must lead to.
MODES = [(MODERN, MODERN), ("auto", MODERN), ("legacy", LEGACY)]

LIMIT_S = 60


def check(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


async def exercise(names: list[str], call: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> dict[str, int]:
    """Runs the scenario; `call` gives a raw tools/call result. Returns how many hits named src/main.rs."""
    missing = [name for name in TOOLS if name not in names]
    check(not missing, f"tools/list lacks {missing}; it has {names}")

    found = await call("search_text", {"pattern": "fn main"})
    check(not found.is_error, f"search_text failed: {found}")
    hits = count_hits(found.structured_content) or sum(count_hits(block_text(block)) for block in found.content)
    check(hits > 0, f'search_text for "fn main" does not name src/main.rs: {found}')

    echoed = await call("echo", {"message": "hello"})
    check(not echoed.is_error and "hello" in str(echoed), f"echo did not answer hello: {echoed}")

    invalid = await call("search_text", {"pattern": "("})
    check(invalid.is_error is True, f"an invalid regex must answer isError: {invalid}")
    return {"hits": hits}


def block_text(block: Any) -> str:
    return getattr(block, "text", "")


def count_hits(value: Any) -> int:
    """Lines of text that name src/main.rs, anywhere in the value."""
    if isinstance(value, str):
        return sum("src/main.rs" in line for line in value.splitlines())
    if isinstance(value, dict):
        return sum(count_hits(inner) for inner in value.values())
    if isinstance(value, list):
        return sum(count_hits(inner) for inner in value)
    return 0


def program(package: str, connect_and_exercise: Callable[[str, str], Awaitable[tuple[str, dict[str, Any]]]]) -> None:
    """Runs a client in every mode, prints one JSON line, and turns any failure into exit code 1.

    `connect_and_exercise(url, mode)` gives the negotiated revision and what it found, which goes into the line.
    """
    installed = version(package)
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} http://127.0.0.1:PORT/mcp")

    async def run() -> dict[str, Any]:
        protocol: list[str] = []
        found: dict[str, Any] = {}
        for mode, expected in MODES:
            negotiated, more = await connect_and_exercise(sys.argv[1], mode)
            check(negotiated == expected, f"mode {mode} negotiated {negotiated}, not {expected}")
            found |= more
            if negotiated not in protocol:
                protocol.append(negotiated)
        return {"protocol": protocol, **found}

    try:
        outcome = asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    except TimeoutError:
        sys.exit(f"{package} {installed}: no end after {LIMIT_S} s")
    except Exception as error:
        print(f"{package} {installed}: {type(error).__name__}: {error}", file=sys.stderr)
        raise
    print(json.dumps({"client": package, "version": installed, **outcome}))
