"""Reading by itself: when it is due, what others read in between, and following at any moment."""

import asyncio
import random
from unittest import mock

from fake_ec2 import FakeEc2, aws_error
from virtual import VirtualClock, run, settle

from imagetasks_server.budget import Allowance, Budget
from imagetasks_server.poller import Poller, Rhythm
from imagetasks_server.reader import Ear, Reader
from imagetasks_server.upstream import Page, Query, Upstream
from imagetasks_server.view import Revisions, View

PLENTY = Allowance(capacity=1e6, refill=1e6, usable=1.0, initial=1e6)
RHYTHM = Rhythm(busy=5.0, idle=30.0, linger=10.0)


def polled(
    clock: VirtualClock, rhythm: Rhythm = RHYTHM, allowance: Allowance = PLENTY, page_size: int = 200
) -> tuple[FakeEc2, Reader, Poller]:
    ec2 = FakeEc2(clock, page_size=page_size)
    upstream = Upstream(ec2.read_page, Budget(allowance, clock), clock, timeout=60, remember_refusals_for=30)
    reader = Reader(View(Revisions()), upstream, clock, full_read_every=600, distrust_for=600, timeout=60)
    return ec2, reader, Poller(reader, clock, rhythm, random.Random(1))


async def somebody_reads(reader: Reader, clock: VirtualClock) -> None:
    ear = Ear()
    read = reader.join(clock(), ear)
    try:
        while not read.done:
            await ear.news()
    finally:
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


def test_reading_by_itself_spends_half_of_the_budget_however_short_the_pages_are() -> None:
    async def scenario(clock: VirtualClock) -> None:
        little = Allowance(capacity=20.0, refill=1.0, usable=1.0, initial=20.0)
        ec2, _, poller = polled(clock, allowance=little, page_size=3)
        for age in range(15):
            ec2.add(age=age)
        poller.follow(clock())
        await asyncio.sleep(20)
        before = len(ec2.calls)
        await asyncio.sleep(200)
        assert 80 <= len(ec2.calls) - before <= 100
        await poller.close()

    run(scenario)


def test_a_slow_read_of_somebody_else_is_shared_and_puts_the_next_one_off() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, reader, poller = polled(clock)
        ec2.add()
        poller.follow(clock())
        await asyncio.sleep(3)
        hold = ec2.hang()
        slow = asyncio.create_task(somebody_reads(reader, clock))
        # Its own is due meanwhile.
        await asyncio.sleep(4)
        hold.release()
        await slow
        calls = len(ec2.calls)
        await asyncio.sleep(0.5)
        assert len(ec2.calls) == calls
        await asyncio.sleep(1.5)
        assert len(ec2.calls) == calls + 1
        await poller.close()

    run(scenario)


def test_callers_who_leave_a_slow_target_soon_keep_nobody_who_follows_from_hearing_of_it() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, reader, poller = polled(clock)
        ec2.add()
        poller.follow(clock())
        await asyncio.sleep(3)
        read_page = ec2.read_page

        async def slowly(query: Query, token: str | None) -> Page:
            await asyncio.sleep(2)
            return await read_page(query, token)

        with mock.patch.object(reader.upstream, "_read_page", slowly):
            impatient = [asyncio.create_task(somebody_reads(reader, clock))]
            for _ in range(20):
                # Somebody's read runs at any moment, and ends with his patience.
                await asyncio.sleep(1)
                impatient.append(asyncio.create_task(somebody_reads(reader, clock)))
                await settle()
                impatient[-2].cancel()
            await asyncio.sleep(3)
        assert reader.view.read_time is not None
        assert reader.view.read_time >= clock() - 8
        await poller.close()

    run(scenario)


def test_who_comes_while_somebody_else_reads_shares_that_read() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, reader, poller = polled(clock)
        hold = ec2.hang()
        slow = asyncio.create_task(somebody_reads(reader, clock))
        await asyncio.sleep(1)
        poller.follow(clock() - 5)
        await settle()
        hold.release()
        await slow
        await settle()
        assert ec2.lists == 1
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
