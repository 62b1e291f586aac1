"""The Python `mcp` 2.x client while the instance that runs its call is killed: it says on a line who runs the call, and
at the end what it was told."""

import asyncio
import json
import sys
from typing import Any

from mcp import Client

STEPS = 20


async def call(client: Client, name: str, label: str, steps: int = STEPS) -> tuple[list[float], str]:
    """Calls a tool that takes steps, and says after the third of them who runs it."""
    told: list[float] = []

    async def on_progress(progress: float, _total: float | None, message: str | None) -> None:
        told.append(progress)
        if len(told) == 3:
            print(json.dumps({"runs": message}), flush=True)

    arguments: dict[str, Any] = {"label": label, "steps": steps, "pause_ms": 100}
    result = await client.call_tool(name, arguments, progress_callback=on_progress)
    return told, result.content[0].text


async def main(url: str) -> None:
    async with Client(url, mode="legacy") as client:
        told, text = await call(client, "steps", "again")
        try:
            _, result = await call(client, "steps_once", "once")
            error = f"a result: {result}"
        except Exception as failed:  # whatever the client makes of an error
            error = str(failed)
        _, echo = await call(client, "steps", "echo", 1)
    said = {"steps": [int(step) for step in told], "result": text, "error": error, "echo": echo.replace("echo ", "")}
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
