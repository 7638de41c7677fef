"""Deadlines, cancelling and retries."""

import asyncio
import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

import grpc
import pytest
from either_client import Connect, collect
from scripted_gateway import (
    PATIENCE,
    Respond,
    ScriptedGateway,
    failing,
    gated,
    page_event,
    reason,
    status,
    summary_event,
    targets_answer,
    task,
    waiting,
)

import imagetasks
from imagetasks.v1 import store_image_tasks_pb2 as pb

Page = pb.DescribeStoreImageTasksResponse

UNAVAILABLE = failing(status(grpc.StatusCode.UNAVAILABLE, "draining", reason("DRAINING")))
CANCELLED = failing(status(grpc.StatusCode.CANCELLED, ""))

# A server at which five calls may wait, and which takes its time. In a process of its own: the client must
# not wait for it to send. It prints its port, and how many calls had been refused before.
NARROW = """
import asyncio, sys, time, grpc, grpc.aio
limits = [("grpc.server.max_pending_requests", 5), ("grpc.server.max_pending_requests_hard_limit", 5)]
again = 0
async def answer(request, context):
    global again
    again += "grpc-previous-rpc-attempts" in dict(context.invocation_metadata())
    time.sleep(0.002)
    return b""
async def main():
    server = grpc.aio.server(options=limits)
    handlers = {"ListTargets": grpc.unary_unary_rpc_method_handler(answer)}
    service = grpc.method_handlers_generic_handler("imagetasks.v1.StoreImageTaskService", handlers)
    server.add_generic_rpc_handlers((service,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    print(again)
asyncio.run(main())
"""


def scripted(gateway: ScriptedGateway) -> None:
    gateway.describe = lambda *_: Page()
    gateway.stream = lambda *_: [summary_event()]
    gateway.targets = lambda *_: targets_answer()


async def ask_all(client: Any, **limits: Any) -> None:
    async for _ in client.describe(**limits):
        pass
    async for _ in client.stream(**limits):
        pass
    await client.targets(**limits)
    await client.dry_run(**limits)


async def test_every_call_has_a_deadline_of_a_minute(gateway: ScriptedGateway, client: Any) -> None:
    scripted(gateway)

    await ask_all(client)

    assert len(gateway.calls) == 4
    for call in gateway.calls:
        assert call.time_remaining == pytest.approx(60, abs=10)


@pytest.mark.parametrize("timeout", [1000, timedelta(seconds=1000)])
async def test_a_call_may_bring_its_own_deadline(
    gateway: ScriptedGateway,
    client: Any,
    timeout: float | timedelta,  # noqa: ASYNC109 - the case, not this test's own
) -> None:
    scripted(gateway)

    await ask_all(client, timeout=timeout)

    for call in gateway.calls:
        assert call.time_remaining == pytest.approx(1000, abs=10)


@pytest.mark.parametrize("timeout", [0, None, timedelta(0)])
async def test_a_call_may_have_no_deadline(
    gateway: ScriptedGateway,
    client: Any,
    timeout: float | timedelta | None,  # noqa: ASYNC109 - the case, not this test's own
) -> None:
    scripted(gateway)

    await ask_all(client, timeout=timeout)

    # gRPC's way to say it: None, or a time further off than any clock.
    assert all(call.time_remaining is None or call.time_remaining > 1e9 for call in gateway.calls)


async def test_the_client_may_have_another_deadline_for_all_calls(
    gateway: ScriptedGateway,
    connect: Connect,
) -> None:
    scripted(gateway)

    async with connect(gateway.endpoint, timeout=500) as client:
        await ask_all(client)

    for call in gateway.calls:
        assert call.time_remaining == pytest.approx(500, abs=10)


async def test_a_passed_deadline_is_an_error_of_its_own(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = waiting
    gateway.stream = gated([page_event(task())], threading.Event())
    seen: list[Any] = []

    with pytest.raises(imagetasks.DeadlineExceededError):
        await anext(client.describe(timeout=0.05).pages())
    with pytest.raises(imagetasks.DeadlineExceededError):
        await collect(client.stream(timeout=0.5), seen)

    assert seen == [page_event(task())]


async def test_cancelling_a_task_ends_its_call_at_the_gateway(gateway: ScriptedGateway) -> None:
    arrived = threading.Event()

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        arrived.set()
        return waiting(request, context)

    gateway.describe = gateway.stream = gateway.targets = respond
    async with imagetasks.connect(gateway.endpoint) as client:
        steps = (
            lambda: anext(client.describe().pages()),
            lambda: anext(client.stream()),
            client.targets,
        )
        for number, step in enumerate(steps):
            asking = asyncio.ensure_future(step())
            assert await asyncio.to_thread(arrived.wait, PATIENCE)
            arrived.clear()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await asyncio.to_thread(gateway.calls[number].over.wait, PATIENCE)


async def test_a_blocking_stream_can_be_closed_by_another_thread(gateway: ScriptedGateway) -> None:
    arrived = threading.Event()

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        arrived.set()
        return waiting(request, context)

    gateway.stream = respond
    with imagetasks.connect_blocking(gateway.endpoint) as client:
        stream = client.stream()
        reading = asyncio.ensure_future(asyncio.to_thread(list, stream))
        assert await asyncio.to_thread(arrived.wait, PATIENCE)
        stream.close()

        assert await reading == []
        assert await asyncio.to_thread(gateway.calls[0].over.wait, PATIENCE)


async def test_a_cancel_that_the_caller_did_not_cause_is_unavailable(
    gateway: ScriptedGateway,
    client: Any,
) -> None:
    gateway.describe = failing(status(grpc.StatusCode.CANCELLED, "too many at once"))
    gateway.stream = gateway.describe

    with pytest.raises(imagetasks.UnavailableError) as unary:
        await anext(client.describe().pages())
    with pytest.raises(imagetasks.UnavailableError):
        await anext(aiter(client.stream()))

    assert unary.value.code is grpc.StatusCode.CANCELLED
    assert len(gateway.calls) == 2 * 4


@pytest.mark.parametrize("refuse", [UNAVAILABLE, CANCELLED], ids=["unavailable", "cancelled"])
async def test_what_passes_is_tried_again(gateway: ScriptedGateway, client: Any, refuse: Respond) -> None:
    def refuse_twice(request: Any, context: grpc.ServicerContext) -> Page:
        return refuse(request, context) if len(gateway.calls) < 3 else Page(next_token="")

    gateway.describe = refuse_twice

    pages = [page async for page in client.describe().pages()]

    assert len(pages) == 1
    assert [call.metadata.get("grpc-previous-rpc-attempts") for call in gateway.calls] == [None, "1", "2"]


async def test_calls_that_grpc_refuses_when_too_many_wait_are_answered_all_the_same() -> None:
    narrow = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NARROW, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert narrow.stdout is not None
    async with imagetasks.connect(f"127.0.0.1:{int(await narrow.stdout.readline())}") as client:
        answers = await asyncio.gather(*(client.targets() for _ in range(100)))
    out, _ = await narrow.communicate(b"")
    assert len(answers) == 100
    # It did refuse: some calls came again.
    assert int(out) > 0


async def test_unavailable_is_given_up_after_four_attempts(gateway: ScriptedGateway, client: Any) -> None:
    gateway.targets = UNAVAILABLE

    with pytest.raises(imagetasks.UnavailableError) as raised:
        await client.targets()

    assert raised.value.reason == "DRAINING"
    assert len(gateway.calls) == 4


async def test_a_stream_is_tried_again_before_its_first_message(
    gateway: ScriptedGateway,
    client: Any,
) -> None:
    def once_unavailable(request: Any, context: grpc.ServicerContext) -> Any:
        return UNAVAILABLE(request, context) if len(gateway.calls) < 2 else [summary_event()]

    gateway.stream = once_unavailable

    assert [event async for event in client.stream()] == [summary_event()]
    assert len(gateway.calls) == 2


async def test_a_stream_is_not_tried_again_after_its_first_message(
    gateway: ScriptedGateway,
    client: Any,
) -> None:
    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        yield page_event(task())
        UNAVAILABLE(request, context)

    gateway.stream = respond

    with pytest.raises(imagetasks.UnavailableError):
        async for _ in client.stream():
            pass

    assert len(gateway.calls) == 1


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
    ],
)
async def test_no_other_code_is_tried_again(
    gateway: ScriptedGateway,
    client: Any,
    code: grpc.StatusCode,
) -> None:
    gateway.describe = failing(status(code, "no"))
    gateway.stream = gateway.describe

    with pytest.raises(imagetasks.Error):
        await anext(client.describe().pages())
    with pytest.raises(imagetasks.Error):
        await anext(aiter(client.stream()))

    assert len(gateway.calls) == 2
