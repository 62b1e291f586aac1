"""The Python `fastmcp` 4.x client against a running bigiron: stateless, choosing by itself, and initialize."""

from typing import Any

from fastmcp import Client

from scenario import exercise, program


async def run(url: str, mode: str) -> tuple[str, dict[str, int]]:
    async with Client(url, mode=mode) as client:

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            # The raw result: `call_tool` would turn isError into an exception.
            return await client.call_tool_mcp(name, arguments)

        names = [tool.name for tool in await client.list_tools()]
        return client.protocol_version or "none", await exercise(names, call)


if __name__ == "__main__":
    program("fastmcp", run)
