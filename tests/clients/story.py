"""A working day of the Python `mcp` 2.x client against the everything server.

In a session: questions of tools answered, progress, a resource watched, a stream that ends in the middle and goes on.
Stateless: questions as rounds, and calls that become tasks: one that ends by itself, one that asks in the middle, one
that is taken back.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from mcp import Client, types
from mcp.client import ClaimContext, ClientExtension, ClientSession, ResultClaim
from pydantic import ConfigDict

from scenario import LEGACY, MODERN, check, program

WATCHED = "test://watched-resource"
POLL_S = 0.02


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


class Task(types.Result):
    """A call that became a task, and what `tasks/get` says of it."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"
    task_id: str
    status: str


class TaskAnswer(types.Result):
    """What the methods of tasks answer, as it came."""

    model_config = ConfigDict(extra="allow")


class TaskRequest(types.Request[dict[str, Any], str]):
    name_param = "taskId"


async def ask(session: ClientSession, method: str, task_id: str, **params: Any) -> dict[str, Any]:
    request = TaskRequest(method=method, params={"taskId": task_id, **params})
    return (await session.send_request(request, TaskAnswer)).model_extra or {}


async def until(session: ClientSession, task_id: str, *statuses: str) -> dict[str, Any]:
    while True:
        task = await ask(session, "tasks/get", task_id)
        if task["status"] in statuses:
            return task
        check(task["status"] == "working", f"{task}, not one of {statuses}")
        await asyncio.sleep(POLL_S)


class Tasks(ClientExtension):
    """The tasks extension, in the terms that the client has for extensions: it ends what became a task."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=self.finish)]

    async def finish(self, task: Task, context: ClaimContext) -> types.CallToolResult:
        ended = await until(context.session, task.task_id, "completed", "input_required")
        if ended["status"] == "input_required":
            self.seen.append("asked")
            question = ended["inputRequests"]["confirm"]
            check(question["method"] == "elicitation/create", f"asked {question}")
            confirm = {"action": "accept", "content": {"confirm": True}}
            await ask(context.session, "tasks/update", task.task_id, inputResponses={"confirm": confirm})
            ended = await until(context.session, task.task_id, "completed")
        else:
            self.seen.append("completed")
        return types.CallToolResult.model_validate(ended["result"])


async def tasks(url: str) -> list[str]:
    extension = Tasks()
    async with Client(url, mode=MODERN, elicitation_callback=elicit, extensions=[extension]) as client:
        await says(client, "slow_compute", {"seconds": 0.2, "label": "The sum"}, "The sum took 0.2 seconds")
        await says(client, "confirm_delete", {"filename": "notes"}, "Deleted notes")
        long = await client.session.call_tool("slow_compute", {"seconds": 600}, allow_claimed=True)
        check(isinstance(long, Task), f"slow_compute answered {long}, not a task")
        await ask(client.session, "tasks/cancel", long.task_id)
        await until(client.session, long.task_id, "cancelled")
        return [*extension.seen, "cancelled"]


async def run(url: str, mode: str) -> tuple[str, dict[str, Any]]:
    updates: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            await updates.put(str(message.params.uri))

    callbacks = {"sampling_callback": sample, "elicitation_callback": elicit, "list_roots_callback": roots}
    async with Client(url, mode=mode, message_handler=on_message, **callbacks) as client:
        if client.protocol_version == LEGACY:
            await in_session(client, updates)
            return LEGACY, {"hits": 1}
        await stateless(client)
        return client.protocol_version, {"hits": 1, "tasks": await tasks(url)}


if __name__ == "__main__":
    program("mcp", run)
