"""A working day of the Python `mcp` 2.x client against the everything server.

In a session: questions of tools answered, progress, a resource watched, a stream that ends in the middle and goes on.
Stateless: questions as rounds.
"""

import asyncio
from typing import Any

from mcp import Client, types

from scenario import LEGACY, MODERN, check, program

WATCHED = "test://watched-resource"


async def sample(_: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    text = types.TextContent(type="text", text=f"sampled {len(params.messages)} message")
    return types.CreateMessageResult(role="assistant", content=text, model="none")


async def elicit(_: Any, params: types.ElicitRequestFormParams) -> types.ElicitResult:
    names = params.requested_schema["properties"]
    return types.ElicitResult(action="accept", content={name: f"my {name}" for name in names})


async def roots(_: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///work", name="work")])


async def says(client: Client, name: str, arguments: dict[str, Any], expected: str, **options: Any) -> None:
    result = await client.call_tool(name, arguments, **options)
    check(expected in str(result.content), f"{name} answered {result}, not {expected}")


async def in_session(client: Client, updates: asyncio.Queue[str]) -> None:
    await says(client, "test_sampling", {"prompt": "Anything"}, "LLM response: sampled 1 message")
    await says(client, "test_elicitation", {"message": "Who?"}, "my username")

    await client.subscribe_resource(WATCHED)
    await says(client, "test_trigger_resource_change", {}, "Said.")
    updated = await updates.get()
    check(updated == WATCHED, f"an update of {updated}")

    steps: list[float] = []

    async def on_progress(progress: float, _total: float | None, _message: str | None) -> None:
        steps.append(progress)

    await says(client, "test_reconnection", {}, "The client came back for this.", progress_callback=on_progress)
    check(steps == [1, 2, 3, 4, 5, 6], f"steps over a broken stream: {steps}")


async def stateless(client: Client) -> None:
    await says(client, "test_input_required_result_elicitation", {}, "Hello, my name!")
    await says(client, "test_input_required_result_multi_round", {}, "my name likes my color")
    await says(client, "test_input_required_result_list_roots", {}, "file:///work")


async def run(url: str, mode: str) -> tuple[str, int]:
    updates: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            await updates.put(str(message.params.uri))

    callbacks = {"sampling_callback": sample, "elicitation_callback": elicit, "list_roots_callback": roots}
    async with Client(url, mode=mode, message_handler=on_message, **callbacks) as client:
        if client.protocol_version == LEGACY:
            await in_session(client, updates)
        else:
            await stateless(client)
        return client.protocol_version, 1


if __name__ == "__main__":
    program("mcp", run)
