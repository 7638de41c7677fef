"""However a caller leaves, nothing of the call stays, and others keep theirs.

The fixture's end proves the first part of every test: no call, no read and no lookup may still run.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeEc2, FakeWorld, Hold, image
from gateway_stage import NO_AGE, Describe, Gateway, Serve, eventually, our_tasks
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub

ONE: dict[str, Any] = {"accounts": ["main"], "regions": ["eu-central-1"]}
Leave = Callable[[Any, grpc.aio.Channel], Awaitable[None]]


def under_way(gateway: Gateway) -> int:
    return gateway.boundary.in_flight


@pytest.fixture
def ec2(world: FakeWorld) -> FakeEc2:
    return world.ec2()


@contextlib.asynccontextmanager
async def another_client(gateway: Gateway) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(gateway.address, options=options) as channel:
        yield StoreImageTaskServiceStub(channel), channel


async def cancel(call: Any, _: grpc.aio.Channel) -> None:
    call.cancel()


async def close(_: Any, channel: grpc.aio.Channel) -> None:
    await channel.close()


async def wait_for_the_deadline(call: Any, _: grpc.aio.Channel) -> None:
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


LEAVE = pytest.mark.parametrize("leave", [cancel, close], ids=["cancel", "close"])


class TestUnary:
    """Callers of a describe."""

    @LEAVE
    async def test_the_last_to_leave_cancels_the_read(
        self, gateway: Gateway, ec2: FakeEc2, leave: Leave
    ) -> None:
        hold = ec2.hang()
        async with another_client(gateway) as (stub, channel):
            call = stub.DescribeStoreImageTasks(Describe(**ONE))
            await hold.reached()
            await leave(call, channel)
            await eventually(lambda: hold.waiting == 0)
        assert ec2.cancelled == 1

    @LEAVE
    async def test_who_leaves_takes_nothing_from_the_others(
        self, gateway: Gateway, ec2: FakeEc2, leave: Leave
    ) -> None:
        hold = ec2.hang()
        ec2.add(image(1))
        staying = asyncio.create_task(gateway.describe(**ONE))
        async with another_client(gateway) as (stub, channel):
            leaving = [stub.DescribeStoreImageTasks(Describe(**ONE)) for _ in range(3)]
            await eventually(lambda: gateway.inside == 4)
            for call in leaving:
                await leave(call, channel)
            await eventually(lambda: gateway.inside == 1)
        hold.release()
        assert len((await staying).store_image_task_results) == 1
        assert (ec2.lists, ec2.cancelled) == (1, 0)

    async def test_one_who_comes_while_a_read_is_being_cancelled_gets_his_own(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        hold = ec2.hang()
        call = gateway.stub.DescribeStoreImageTasks(Describe(**ONE))
        await hold.reached()
        ec2.hang().release()
        call.cancel()
        response = await gateway.describe(**ONE)
        assert response.target_outcomes[0].source == pb.SOURCE_LIVE

    async def test_a_deadline_that_passes_ends_the_read(self, gateway: Gateway, ec2: FakeEc2) -> None:
        hold = ec2.hang()
        refused = await gateway.refused(0.3, **ONE)
        assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: hold.waiting == 0)

    async def test_a_caller_with_a_short_deadline_takes_nothing_from_one_with_a_long(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        hold = ec2.hang()
        patient = asyncio.create_task(gateway.describe(**ONE))
        await gateway.refused(0.3, **ONE)
        assert hold.waiting == 1
        hold.release()
        assert (await patient).target_outcomes[0].source == pb.SOURCE_LIVE
        assert ec2.lists == 1

    async def test_nobody_waits_for_a_read_of_one_who_left_while_it_waited(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        hold = ec2.hang()
        first = asyncio.create_task(gateway.describe(**ONE))
        await hold.reached()
        # This one needs a read that starts after now, so it waits behind the first.
        second = gateway.stub.DescribeStoreImageTasks(Describe(max_age=NO_AGE, **ONE))
        await eventually(lambda: gateway.inside == 2)
        second.cancel()
        await eventually(lambda: gateway.inside == 1)
        hold.release()
        await first
        assert ec2.lists == 1


class TestStreams:
    """Callers of a stream."""

    @LEAVE
    async def test_the_last_to_leave_cancels_the_read(
        self, gateway: Gateway, ec2: FakeEc2, leave: Leave
    ) -> None:
        hold = ec2.hang()
        async with another_client(gateway) as (stub, channel):
            call = stub.StreamStoreImageTasks(pb.StreamStoreImageTasksRequest())
            await hold.reached()
            await leave(call, channel)
            await eventually(lambda: under_way(gateway) == 0)
        await eventually(lambda: not our_tasks())
        assert hold.waiting == 0

    @pytest.mark.parametrize(
        "leave", [cancel, close, wait_for_the_deadline], ids=["cancel", "close", "deadline"]
    )
    @pytest.mark.parametrize("messages_read", [0, 1, 2])
    async def test_leaving_while_the_gateway_is_writing_leaves_nothing(
        self, serve: Serve, clock: VirtualClock, leave: Leave, messages_read: int
    ) -> None:
        world = FakeWorld(clock)
        for number in range(1000):
            world.ec2().add(image(number), age=number, state="Failed", reason="r" * 8000)
        gateway = await serve(world)
        await gateway.describe()
        async with another_client(gateway) as (stub, channel):
            deadline = 0.5 if leave is wait_for_the_deadline else None
            call = stub.StreamStoreImageTasks(pb.StreamStoreImageTasksRequest(), timeout=deadline)
            for _ in range(messages_read):
                await call.read()
            await leave(call, channel)
            await eventually(lambda: under_way(gateway) == 0)

    async def test_leaving_between_two_pages_leaves_nothing(self, serve: Serve, clock: VirtualClock) -> None:
        world = FakeWorld(clock, page_size=2)
        ec2 = world.ec2()
        ec2.add_ended(4)
        holds: list[Hold] = []
        ec2.between = lambda call: holds.append(ec2.hang()) if not call.token else None
        gateway = await serve(world)
        call = gateway.open_stream()
        assert (await call.read()).HasField("page")
        call.cancel()
        await eventually(lambda: under_way(gateway) == 0)
        await eventually(lambda: not our_tasks())
        assert holds[0].waiting == 0

    async def test_one_that_stays_gets_all_when_another_leaves(self, gateway: Gateway, ec2: FakeEc2) -> None:
        ec2.add_ended(3)
        hold = ec2.hang()
        staying = asyncio.create_task(gateway.stream(**ONE))
        async with another_client(gateway) as (stub, _):
            leaving = stub.StreamStoreImageTasks(
                pb.StreamStoreImageTasksRequest(selector=pb.TaskSelector(**ONE))
            )
            await eventually(lambda: gateway.inside == 2)
            leaving.cancel()
            await eventually(lambda: gateway.inside == 1)
        hold.release()
        assert (await staying)[-1].summary.task_count == 3


async def test_a_hundred_callers_that_come_and_go_leave_nothing(gateway: Gateway, world: FakeWorld) -> None:
    holds = [ec2.hang() for ec2 in world.all()]
    calls = [
        gateway.open_stream(None) if n % 2 else gateway.stub.DescribeStoreImageTasks(Describe())
        for n in range(100)
    ]
    await eventually(lambda: gateway.inside == 100)
    for call in calls:
        call.cancel()
    await eventually(lambda: under_way(gateway) == 0)
    await eventually(lambda: not our_tasks())
    assert [hold.waiting for hold in holds] == [0, 0, 0]
    assert [ec2.lists for ec2 in world.all()] == [1, 1, 1]


async def test_a_cancelled_call_is_logged_as_cancelled(
    gateway: Gateway, ec2: FakeEc2, log: list[Any]
) -> None:
    hold = ec2.hang()
    calls: list[Callable[[], Any]] = [
        lambda: gateway.open_stream(None),
        lambda: gateway.stub.DescribeStoreImageTasks(Describe()),
    ]
    for call_it in calls:
        call = call_it()
        await eventually(lambda: gateway.inside == 1)
        await hold.reached()
        call.cancel()
        await eventually(lambda: under_way(gateway) == 0)
    assert [entry["code"] for entry in log if entry["event"] == "call"] == ["CANCELLED", "CANCELLED"]
