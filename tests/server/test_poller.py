"""Reading by itself: when it is due, what others read in between, and following at any moment."""

import asyncio
import random

from fake_ec2 import FakeEc2, aws_error
from virtual import VirtualClock, run, settle

from imagetasks_server.budget import Allowance, Budget
from imagetasks_server.poller import Poller, Rhythm
from imagetasks_server.reader import Ear, Reader
from imagetasks_server.upstream import Upstream
from imagetasks_server.view import Revisions, View

PLENTY = Allowance(capacity=1e6, refill=1e6, usable=1.0, initial=1e6)
RHYTHM = Rhythm(busy=5.0, idle=30.0, linger=10.0)


def polled(clock: VirtualClock, rhythm: Rhythm = RHYTHM) -> tuple[FakeEc2, Reader, Poller]:
    ec2 = FakeEc2(clock)
    upstream = Upstream(ec2.read_page, Budget(PLENTY, clock), clock, timeout=60, remember_refusals_for=30)
    reader = Reader(View(Revisions()), upstream, clock, full_read_every=600, distrust_for=600, timeout=60)
    return ec2, reader, Poller(reader, clock, rhythm, random.Random(1))


async def somebody_reads(reader: Reader, clock: VirtualClock) -> None:
    ear = Ear()
    read = reader.join(clock(), ear)
    while not read.done:
        await ear.news()
    reader.leave(read, ear)


def test_a_task_that_somebody_else_finds_is_read_often_from_then_on() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, reader, poller = polled(clock)
        poller.follow(clock())
        await asyncio.sleep(1)
        ec2.add()
        await somebody_reads(reader, clock)
        calls = len(ec2.calls)
        await asyncio.sleep(6)
        assert len(ec2.calls) == calls + 1
        await poller.close()

    run(scenario)


def test_a_read_of_somebody_else_that_succeeds_ends_the_pause_after_failures() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, reader, poller = polled(clock)
        ec2.add()
        ec2.fail(aws_error("InternalError", status=500), times=None)
        poller.follow(clock())
        await asyncio.sleep(100)
        ec2.recover()
        await somebody_reads(reader, clock)
        calls = len(ec2.calls)
        await asyncio.sleep(6)
        assert len(ec2.calls) == calls + 1
        await poller.close()

    run(scenario)


def test_who_follows_in_the_turn_in_which_lingering_ends_is_read_for() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, _, poller = polled(clock, Rhythm(linger=0.0))
        poller.follow(clock())
        await settle()
        poller.unfollow()
        asyncio.get_running_loop().call_soon(poller.follow, clock())
        await asyncio.sleep(100)
        assert not poller.is_idle
        assert len(ec2.calls) >= 3
        await poller.close()

    run(scenario)
