"""Watches and waits of both clients on a scripted gateway: what they survive, raise and leave behind."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from scripted_gateway import (
    PATIENCE,
    Respond,
    ScriptedGateway,
    failing,
    gated,
    reason,
    status,
    task,
    waiting,
)
from watch_events import ENDED, Event, at, change, closing, group, heartbeat, reset, snapshot, started

import imagetasks
from imagetasks.backoff import Backoff
from imagetasks.v1 import store_image_tasks_pb2 as pb

Answer = pb.WaitStoreImageTasksResponse
AWAY = status(grpc.StatusCode.UNAVAILABLE, "away", reason("DRAINING"))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    def hurried(self: Backoff, error: object = None) -> float:
        del self, error
        return 0.001

    monkeypatch.setattr(Backoff, "pause", hurried)


def in_turn(*responses: Respond) -> Respond:
    """Each call is answered by the next of them."""
    left = iter(responses)
    taking = threading.Lock()

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        with taking:
            following = next(left)
        return following(request, context)

    return respond


def events(*messages: Event) -> Callable[..., Iterator[Event]]:
    return lambda *_: iter(messages)


def open_ended(*messages: Event) -> Respond:
    """Stays open after them until the caller leaves."""
    return gated(messages, threading.Event())


def tokens(gateway: ScriptedGateway) -> list[str]:
    return [call.request.resume_token for call in gateway.calls if call.method == "watch"]


async def take(watch: Any, count: int) -> list[tuple[str, int]]:
    taken = []
    for _ in range(count):
        change = await anext(watch)
        taken.append((change.task.task_id, change.task.progress_percentage))
    return taken


ways_to_end = pytest.mark.parametrize(
    "ending",
    [
        failing(AWAY),
        failing(status(grpc.StatusCode.CANCELLED, "too many")),
        failing(status(grpc.StatusCode.INTERNAL, "RST_STREAM")),
        events(),
        events(closing("s")),
    ],
    ids=["unavailable", "cancelled", "reset", "ended", "closing"],
)


@ways_to_end
async def test_a_watch_goes_on_where_it_was(gateway: ScriptedGateway, client: Any, ending: Respond) -> None:
    def first(request: Any, context: grpc.ServicerContext) -> Iterator[Event]:
        yield from [started(), *snapshot("s", at(10))]
        yield from ending(request, context)

    news = [started(resumed=True), group("g", change("MODIFIED", at(11)))]
    gateway.watch = in_turn(first, open_ended(*news))
    async with client.watch(regions=["eu-central-1"]) as watch:
        assert await take(watch, 2) == [("task-1", 10), ("task-1", 11)]
        assert watch.is_live
        assert [task.progress_percentage for task in watch.tasks.values()] == [11]
    assert tokens(gateway) == ["", "s"]
    assert [call.request.selector.regions for call in gateway.calls] == [["eu-central-1"]] * 2


async def test_a_silent_connection_is_replaced(gateway: ScriptedGateway, client: Any) -> None:
    gateway.watch = in_turn(
        open_ended(started(heartbeat=0.05), *snapshot("s", at(10))),
        open_ended(started(resumed=True), group("g", change("MODIFIED", at(11)))),
    )
    async with client.watch() as watch:
        assert await take(watch, 2) == [("task-1", 10), ("task-1", 11)]
    assert tokens(gateway) == ["", "s"]
    assert await asyncio.to_thread(gateway.calls[0].over.wait, PATIENCE)


async def test_a_restart_loses_no_end_and_repeats_none(gateway: ScriptedGateway, client: Any) -> None:
    gateway.watch = in_turn(
        events(started(), *snapshot("s", at(10), at(20, 2))),
        events(started(), reset(), *snapshot("t", task(**ENDED), at(20, 2)), heartbeat("u")),
        events(started(), reset(), *snapshot("v", task(**ENDED), at(20, 2)), heartbeat("w")),
        open_ended(started(), reset(), *snapshot("x", task(**ENDED), at(21, 2))),
    )
    async with client.watch() as watch:
        assert await take(watch, 4) == [("task-1", 10), ("task-2", 20), ("task-1", 100), ("task-2", 21)]


async def test_an_old_token_begins_anew(gateway: ScriptedGateway, client: Any) -> None:
    expired = status(grpc.StatusCode.OUT_OF_RANGE, "old", reason("RESUME_TOKEN_EXPIRED"))
    gateway.watch = in_turn(
        events(started(), *snapshot("s", at(10))),
        failing(expired),
        open_ended(started(), *snapshot("t", at(11))),
    )
    async with client.watch() as watch:
        assert await take(watch, 2) == [("task-1", 10), ("task-1", 11)]
    assert tokens(gateway) == ["", "s", ""]


async def test_an_error_that_stays_is_raised_and_ends_the_watch(
    gateway: ScriptedGateway, client: Any
) -> None:
    unknown = failing(status(grpc.StatusCode.NOT_FOUND, "no such account", reason("UNKNOWN_ACCOUNT")))
    gateway.watch = in_turn(events(started(), *snapshot("s", at(10))), unknown)
    watch = client.watch()
    await take(watch, 1)
    with pytest.raises(imagetasks.NotFoundError):
        await anext(watch)
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_leaving_ends_the_watch_at_the_gateway(gateway: ScriptedGateway, client: Any) -> None:
    gateway.watch = open_ended(started(), *snapshot("s", at(10)))
    async with client.watch() as watch:
        await take(watch, 1)
    assert await asyncio.to_thread(gateway.calls[0].over.wait, PATIENCE)
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_a_watch_that_is_closed_while_it_waits_ends_quietly(
    gateway: ScriptedGateway, client: Any
) -> None:
    gateway.watch = open_ended(started(), *snapshot("s", at(10)))
    watch = client.watch()
    await take(watch, 1)
    waits = asyncio.create_task(anext(watch, None))
    await asyncio.sleep(0)
    await watch.aclose()
    await watch.aclose()
    assert await waits is None


async def test_a_cancelled_step_hangs_up_and_the_next_goes_on(gateway: ScriptedGateway) -> None:
    gateway.watch = in_turn(
        open_ended(started(), *snapshot("s", at(10))),
        open_ended(started(resumed=True), group("g", change("MODIFIED", at(11)))),
    )
    async with imagetasks.connect(gateway.endpoint) as client, client.watch() as watch:
        await take(watch, 1)
        waits = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert await take(watch, 1) == [("task-1", 11)]
    assert tokens(gateway) == ["", "s"]


def answers(**members: Any) -> Respond:
    return lambda *_: Answer(**members)


async def test_a_wait_returns_the_gateways_answer(gateway: ScriptedGateway, client: Any) -> None:
    gateway.wait = answers(done=True, store_image_task_results=[task(**ENDED)])
    answer = await client.wait(image_ids=["ami-1"], wait_for_appearance=True, timeout=timedelta(minutes=2))
    assert answer.done
    (call,) = gateway.calls
    request = call.request
    assert isinstance(request, pb.WaitStoreImageTasksRequest)
    assert request.wait_for_appearance
    assert request.selector.image_ids == ["ami-1"]
    assert 119 < request.timeout.seconds + request.timeout.nanos / 1e9 <= 120
    assert call.time_remaining is not None
    assert 120 < call.time_remaining < 135


async def test_a_wait_asks_again_until_there_is_an_answer(gateway: ScriptedGateway, client: Any) -> None:
    gateway.wait = in_turn(
        failing(AWAY),
        answers(reason=Answer.REASON_DRAINING),
        failing(status(grpc.StatusCode.CANCELLED, "too many")),
        answers(reason=Answer.REASON_TIMEOUT),
        answers(done=True),
    )
    assert (await client.wait()).done
    assert len({call.request.SerializeToString() for call in gateway.calls[1:]}) == 1


@pytest.mark.parametrize("why", ["NOTHING_MATCHES", "TIMEOUT", "DRAINING"])
async def test_a_wait_tells_why_it_ended_before_the_tasks(
    gateway: ScriptedGateway, client: Any, why: str
) -> None:
    gateway.wait = answers(reason=Answer.Reason.Value(f"REASON_{why}"))
    answer = await client.wait(timeout=0)
    assert (answer.done, answer.reason) == (False, Answer.Reason.Value(f"REASON_{why}"))


async def test_a_wait_without_a_gateway_fails_when_its_time_is_over(
    gateway: ScriptedGateway, client: Any
) -> None:
    gateway.wait = failing(AWAY)
    with pytest.raises(imagetasks.UnavailableError):
        await client.wait(timeout=0.05)


async def test_a_wait_raises_what_stays(gateway: ScriptedGateway, client: Any) -> None:
    gateway.wait = failing(status(grpc.StatusCode.INVALID_ARGUMENT, "no", reason("INVALID_FIELD")))
    with pytest.raises(imagetasks.InvalidArgumentError):
        await client.wait()
    assert len(gateway.calls) == 1


async def test_a_wait_that_is_cancelled_ends_at_the_gateway(gateway: ScriptedGateway) -> None:
    arrived = threading.Event()

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        arrived.set()
        return waiting(request, context)

    gateway.wait = respond
    async with imagetasks.connect(gateway.endpoint) as client:
        waits = asyncio.create_task(client.wait())
        assert await asyncio.to_thread(arrived.wait, PATIENCE)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert await asyncio.to_thread(gateway.calls[0].over.wait, PATIENCE)
