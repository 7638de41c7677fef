"""What calls ask is waited for once it is known who calls, each for a while, and for so many at once."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers_stage import METHODS, TOKEN, UNKNOWN, Issuer, entry, known, sha256
from gateway_stage import PATIENCE, Gateway, Serve, eventually, failure
from virtual import VirtualClock, run

from imagetasks_server.arrivals import Arrivals
from imagetasks_server.boundary import METHODS as KINDS
from imagetasks_server.boundary import Kind
from imagetasks_server.config import Settings
from imagetasks_server.errors import DeadlineExceeded, Error, Exhausted, InvalidRequest

ALL = pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))


class Call:
    """A call as gRPC gives it, whose message comes when it is told to."""

    def __init__(self) -> None:
        self.sends: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def read(self) -> Any:
        return await self.sends


def waiting(arrivals: Arrivals, call: Call) -> "asyncio.Task[bytes]":
    context: Any = call
    return asyncio.ensure_future(arrivals.message(context))


async def why(task: "asyncio.Task[bytes]") -> Error:
    with pytest.raises(Error) as refused:
        await task
    return refused.value


def left(arrivals: Arrivals) -> int:
    return len(arrivals._awaited) + len(arrivals._given_up)


class TestArrivals:
    """Messages of calls that gRPC has handed over."""

    def test_what_comes_is_handed_on_as_it_came(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            arrivals, call = Arrivals(10), Call()
            task = waiting(arrivals, call)
            await asyncio.sleep(9.9)
            call.sends.set_result(b"question")
            assert await task == b"question"
            assert left(arrivals) == 0

        run(scenario)

    def test_each_is_waited_for_so_long_and_no_longer(self) -> None:
        async def scenario(clock: VirtualClock) -> None:
            arrivals, began = Arrivals(10), clock()
            ended: dict[int, float] = {}

            async def comes(number: int) -> None:
                await asyncio.sleep(3 * number)
                assert isinstance(await why(waiting(arrivals, Call())), DeadlineExceeded)
                ended[number] = clock() - began

            await asyncio.gather(*map(comes, range(8)))
            assert ended == {number: pytest.approx(3 * number + 10) for number in range(8)}
            assert left(arrivals) == 0

        run(scenario)

    def test_who_has_been_waited_for_longest_makes_room(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            arrivals = Arrivals(10, most=3)
            calls = [Call() for _ in range(5)]
            tasks = [waiting(arrivals, call) for call in calls]
            for slow in tasks[:2]:
                error = await why(slow)
                assert isinstance(error, Exhausted)
                assert (error.reason, error.retry_after) == ("OVERLOADED", 1.0)
            for call in calls[2:]:
                call.sends.set_result(b"")
            assert await asyncio.gather(*tasks[2:]) == [b""] * 3
            assert left(arrivals) == 0

        run(scenario)

    @pytest.mark.parametrize("most", [1, 10])
    def test_a_call_that_was_taken_back_is_cancelled_and_nothing_else(self, most: int) -> None:
        async def scenario(_: VirtualClock) -> None:
            arrivals = Arrivals(10, most)
            task = waiting(arrivals, Call())
            await asyncio.sleep(1)
            # In the same moment it may have to make room.
            other = waiting(arrivals, answered := Call())
            await asyncio.sleep(0)
            task.cancel()
            answered.sends.set_result(b"")
            assert await other == b""
            await asyncio.wait([task])
            assert task.cancelled()
            assert left(arrivals) == 0

        run(scenario)

    def test_a_call_that_asks_nothing_is_told_so(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            arrivals, call = Arrivals(10), Call()
            call.sends.set_result(grpc.aio.EOF)
            assert isinstance(await why(waiting(arrivals, call)), InvalidRequest)

        run(scenario)


def opened(gateway: Gateway, method: Any, token: str | None = None) -> Any:
    """A call that has sent no message yet."""
    path = f"/imagetasks.v1.StoreImageTaskService/{method.name}"
    make = gateway.channel.stream_stream if method.server_streaming else gateway.channel.stream_unary
    return make(path)(
        metadata=[("authorization", f"Bearer {token}")] if token else [],
        timeout=PATIENCE,
    )


async def first(call: Any) -> Any:
    """Its answer, or a stream's first message."""
    return await (call.read() if hasattr(call, "read") else call)


@ALL
@pytest.mark.parametrize("token", [None, UNKNOWN], ids=["none", "unknown"])
async def test_who_may_not_come_in_is_told_before_a_byte_was_read(
    serve: Serve, tmp_path: Path, method: Any, token: str | None
) -> None:
    gateway = await serve(**known(tmp_path / "jwks.json", Issuer()))
    refused = await failure(first(opened(gateway, method, token)))
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED


@ALL
async def test_who_was_let_in_holds_a_place_while_it_sends_and_no_longer_than_it_may(
    serve: Serve, clock: VirtualClock, method: Any
) -> None:
    gateway = await serve(limits={"max_arrival_seconds": 10})
    limits = gateway.boundary.limits
    held = (0, 1) if KINDS[method.name] is not Kind.CALL else (1, 0)
    call = asyncio.ensure_future(first(opened(gateway, method)))
    await eventually(lambda: (limits.concurrent_calls, limits.open_streams) == held)
    clock.advance(10)
    assert (await failure(call)).reason == "DEADLINE"
    await eventually(lambda: (limits.concurrent_calls, limits.open_streams) == (0, 0))


@ALL
async def test_what_changes_while_it_sends_is_heeded(serve: Serve, method: Any) -> None:
    callers = [entry("dashboard", token_sha256=sha256(TOKEN)), entry("another", token_sha256=sha256(UNKNOWN))]
    gateway = await serve(callers=callers)
    limits = gateway.boundary.limits
    call = opened(gateway, method, TOKEN)
    await eventually(lambda: limits.concurrent_calls + limits.open_streams)
    gateway.gateway.permit(Settings(callers=callers[1:], accounts=[{"name": "main"}]))
    await call.write(b"")
    assert (await failure(first(call))).reason == "CREDENTIAL_INVALID"
