"""The Python `mcp` 2.x client against a running bigiron: stateless, choosing by itself, and initialize."""

from typing import Any

from mcp import Client

from scenario import exercise, program


async def all_tool_names(client: Client) -> list[str]:
    """This client leaves pagination to its caller."""
    page = await client.list_tools()
    names = [tool.name for tool in page.tools]
    while page.next_cursor is not None:
        page = await client.list_tools(cursor=page.next_cursor)
        names += [tool.name for tool in page.tools]
    return names


async def run(url: str, mode: str) -> tuple[str, dict[str, int]]:
    async with Client(url, mode=mode) as client:

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await client.call_tool(name, arguments)

        return client.protocol_version, await exercise(await all_tool_names(client), call)


if __name__ == "__main__":
    program("mcp", run)
