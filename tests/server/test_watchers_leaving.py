"""However a watcher leaves, nothing of the watch stays; one who does not read delays nobody.

The fixture's end proves that no call, no read and no task is left.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld, image
from gateway_stage import Gateway, Serve, eventually
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub

WATCHER = """
import sys, grpc
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    for event in StoreImageTaskServiceStub(channel).WatchStoreImageTasks(pb.WatchStoreImageTasksRequest()):
        print(event.WhichOneof("event"), flush=True)
"""
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]


def under_way(gateway: Gateway) -> int:
    return gateway.boundary.in_flight


def listeners(gateway: Gateway) -> int:
    """Who listens to views, but for their own pollers."""
    return sum(len(tracked.view.listeners) - (not tracked.poller.is_idle) for tracked in gateway.registry)


async def until(call: Any, kind: str) -> Any:
    while True:
        event = await call.read()
        if event.WhichOneof("event") == kind:
            return event


@pytest.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(gateway.address, options=OPTIONS) as channel:
        yield channel


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
async def test_a_watcher_who_leaves_leaves_nothing(
    gateway: Gateway, channel: grpc.aio.Channel, how: str
) -> None:
    stub: Any = StoreImageTaskServiceStub(channel)
    call = stub.WatchStoreImageTasks(
        pb.WatchStoreImageTasksRequest(), timeout=0.5 if how == "deadline" else None
    )
    await until(call, "snapshot_complete")
    if how == "cancel":
        call.cancel()
    elif how == "close":
        await channel.close()
    else:
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: under_way(gateway) == 0)
    assert listeners(gateway) == 0


async def test_a_watcher_whose_process_is_killed_leaves_nothing(gateway: Gateway) -> None:
    root = Path(__file__).parents[2] / "clients/python"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WATCHER,
        gateway.address,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    while await process.stdout.readline() != b"snapshot_complete\n":
        pass
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await eventually(lambda: under_way(gateway) == 0)
    assert listeners(gateway) == 0


async def test_a_watcher_who_does_not_read_delays_nobody_and_gets_the_newest_state_later(
    serve: Serve, clock: VirtualClock
) -> None:
    world = FakeWorld(clock)
    tasks = [world.ec2().add(image(number), bucket="b" * 60, reason="r" * 8000) for number in range(50)]
    gateway = await serve(world)
    async with (
        grpc.aio.insecure_channel(gateway.address, options=OPTIONS) as one,
        grpc.aio.insecure_channel(gateway.address, options=OPTIONS) as other,
    ):
        stalled: Any = StoreImageTaskServiceStub(one).WatchStoreImageTasks(pb.WatchStoreImageTasksRequest())
        quick: Any = StoreImageTaskServiceStub(other).WatchStoreImageTasks(pb.WatchStoreImageTasksRequest())
        await until(stalled, "snapshot_complete")
        await until(quick, "snapshot_complete")
        for percentage in range(1, 31):
            for task in tasks:
                world.ec2().progress(task, percentage)
            clock.advance(6)
            told = 0
            while told < len(tasks):
                event = await quick.read()
                told += len(event.changes.changes)
                assert {c.task.progress_percentage for c in event.changes.changes} <= {percentage}
        # 30 times 400 KB were told to the quick one; the other gets few of them, and the newest.
        messages, held = 0, 0
        while held < 30:
            event = await stalled.read()
            messages += event.HasField("changes")
            held = max([held, *(c.task.progress_percentage for c in event.changes.changes)])
        assert messages < 30
        stalled.cancel()
        quick.cancel()
        await eventually(lambda: under_way(gateway) == 0)
    assert listeners(gateway) == 0
