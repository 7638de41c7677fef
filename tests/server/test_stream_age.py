"""Nothing lasts for ever: a watch that is too old says goodbye with a token, a wait answers."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from fake_ec2 import FakeWorld
from gateway_stage import NO_AGE, PATIENCE, Serve, eventually
from virtual import VirtualClock
from watch_stage import Event, Stage, kinds, staged

import raw_http2 as http2
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import listening
from imagetasks_server.boundary import STUCK_SECONDS
from imagetasks_server.contract import SERVICE

AGE = {"max_stream_age": 1000}


def test_a_watch_that_is_too_old_is_closed_with_a_token_that_goes_on() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        task = ec2.add(percentage=10)
        began = stage.clock()
        watcher = await stage.watch()
        closing = await watcher.next("closing")
        assert 800 <= stage.clock() - began <= 1000
        assert closing.closing.reason == Event.Closing.REASON_MAX_AGE
        assert await watcher.during(1000) == []
        task.percentage = 20
        again = await stage.watch(resume=closing.resume_token)
        again.held = dict(watcher.held)
        assert (await again.next("started")).started.resumed
        (change,) = (await again.next("changes")).changes.changes
        assert change.type == pb.TaskChange.TYPE_MODIFIED

    staged(scenario, limits=AGE)


def test_a_watch_with_news_at_every_moment_is_closed_too() -> None:
    async def scenario(stage: Stage) -> None:
        task = stage.world.ec2().add(percentage=10)

        async def change() -> None:
            for number in range(10_000):
                task.reason = str(number)
                await asyncio.sleep(0.2)

        changing = asyncio.create_task(change())
        began = stage.clock()
        watcher = await stage.watch()
        await watcher.next("closing")
        assert 800 <= stage.clock() - began <= 1000
        assert kinds(watcher.seen).count("changes") > 100
        changing.cancel()
        await asyncio.wait([changing])

    staged(scenario, limits=AGE)


def test_watches_that_came_at_once_do_not_end_at_once() -> None:
    async def scenario(stage: Stage) -> None:
        began = stage.clock()

        async def age() -> float:
            watcher = await stage.watch()
            await watcher.next("closing")
            return stage.clock() - began

        ages = sorted(await asyncio.gather(*(age() for _ in range(60))))
        assert ages[0] >= 800
        assert ages[-1] <= 1000
        # Not a third of them in any tenth of the time.
        assert all(sum(low <= each <= low + 20 for each in ages) <= 20 for low in ages)

    staged(scenario, limits=AGE)


async def test_a_wait_without_an_end_answers_at_the_greatest_age(
    serve: Serve, world: FakeWorld, clock: VirtualClock
) -> None:
    gateway = await serve(limits=AGE)
    world.ec2().add()
    wait = asyncio.ensure_future(
        gateway.stub.WaitStoreImageTasks(pb.WaitStoreImageTasksRequest(), timeout=1e6)
    )
    await eventually(lambda: gateway.boundary.limits.open_streams)
    await eventually(lambda: world.ec2().calls)
    clock.advance(1000)
    assert (await wait).reason == pb.WaitStoreImageTasksResponse.REASON_TIMEOUT


async def test_a_watcher_who_does_not_read_is_cut_off_a_little_later(
    serve: Serve, world: FakeWorld, clock: VirtualClock, log: list[Any]
) -> None:
    # The snapshot is more than gRPC takes from the gateway for a client that does not read.
    gateway = await serve(limits=AGE, channel_options=[("grpc.http2.bdp_probe", 0)])
    world.ec2().add_ended(4000)
    watch = gateway.stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest())
    await watch.read()
    limits = gateway.boundary.limits
    await eventually(lambda: world.ec2().calls)
    clock.advance(1000 + STUCK_SECONDS)
    await eventually(lambda: limits.open_streams == 0)
    await gateway.boundary.idle()
    assert [each["code"] for each in log if each["event"] == "call"] == ["CANCELLED"]
    # Whoever reads is served as ever.
    assert (await gateway.describe()).store_image_task_results


async def test_a_connection_that_is_too_old_takes_no_new_calls_and_keeps_its_watch(
    serve: Serve, world: FakeWorld, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    soon = {**dict(listening.SERVER_OPTIONS), "grpc.max_connection_age_ms": 500}
    monkeypatch.setattr(listening, "SERVER_OPTIONS", tuple(soon.items()))
    gateway = await serve()
    watch = gateway.stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest())
    while not (await watch.read()).HasField("snapshot_complete"):
        pass
    async with asyncio.timeout(PATIENCE):
        while len({each["peer"] for each in log if each["event"] == "call"}) < 2:
            await gateway.describe()
    world.ec2().add()
    await gateway.describe(max_age=NO_AGE)
    while not (event := await watch.read()).HasField("changes"):
        assert not event.HasField("closing")
    watch.cancel()


async def test_an_answer_that_nobody_reads_ends_with_its_connection(
    serve: Serve, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = {**dict(listening.SERVER_OPTIONS), "grpc.max_connection_age_ms": 100}
    monkeypatch.setattr(listening, "SERVER_OPTIONS", tuple(soon.items()))
    monkeypatch.setattr(listening, "BEYOND", 0.0)
    world.ec2().add()
    gateway = await serve(limits={"max_stream_age": 0.5})
    limits = gateway.boundary.limits
    path = f"/{SERVICE.full_name}/DescribeStoreImageTasks"
    closed = http2.PREFACE + http2.settings(header_table_size=0, initial_window_size=0)
    with await asyncio.to_thread(http2.connect, gateway.address) as peer:
        peer.sendall(closed + http2.call(1, http2.request(path)))
        await eventually(lambda: limits.concurrent_calls == 1)
        await asyncio.to_thread(_answers_until_it_ends, peer)
        await eventually(lambda: limits.concurrent_calls == 0)


def _answers_until_it_ends(peer: socket.socket) -> None:
    """As a client that lives, and reads no data."""
    peer.settimeout(PATIENCE)
    frames = http2.Frames()
    with contextlib.suppress(ConnectionError):
        while data := peer.recv(65536):
            for each in frames.of(data):
                peer.sendall(http2.answer(each))
