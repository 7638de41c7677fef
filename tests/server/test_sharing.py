"""Reads are shared: one runs, one waits, nobody is held up, nothing is left behind."""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Any

from fake_ec2 import FakeEc2, aws_error
from hypothesis import given
from hypothesis import strategies as st
from virtual import VirtualClock, run, settle

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.budget import Allowance, Budget
from imagetasks_server.lookups import Lookups
from imagetasks_server.parts import Part, Question, progress
from imagetasks_server.poller import Poller, Rhythm
from imagetasks_server.reader import Ear, Reader
from imagetasks_server.selection import Selection
from imagetasks_server.tracked import Tracked
from imagetasks_server.upstream import Page, Query, Upstream
from imagetasks_server.view import Revisions, View

LATENCY = 1.0
PAGES = 2
READ_SECONDS = LATENCY * PAGES
LONG_ENOUGH = READ_SECONDS + LATENCY / 4
PLENTY = Allowance(capacity=1e6, refill=1e6, usable=1.0, initial=1e6)


@dataclass(frozen=True)
class Caller:
    arrives: float
    max_age: float
    patience: float


CALLERS = st.lists(
    st.builds(
        Caller,
        # Few values, so that callers meet at the very moment something begins or ends.
        arrives=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.5]),
        max_age=st.sampled_from([0.0, 0.5, 2.0, 100.0]),
        patience=st.sampled_from([0.0, 0.5, 1.0, 2.0, 1000.0]),
    ),
    max_size=12,
)


def tracked_over(ec2: FakeEc2, clock: VirtualClock, allowance: Allowance = PLENTY) -> Tracked:
    async def slow(query: Query, token: str | None) -> Page:
        await asyncio.sleep(LATENCY)
        return await ec2.read_page(query, token)

    view = View(Revisions())
    budget = Budget(allowance, clock)
    upstream = Upstream(slow, budget, clock, timeout=60, remember_refusals_for=30)
    reader = Reader(view, upstream, clock, full_read_every=600, distrust_for=1800, timeout=300)
    poller = Poller(reader, clock, Rhythm(), random.Random(0))
    return Tracked(view, budget, reader, Lookups(view, upstream, clock), poller)


def asked(not_before: float, deadline: float, *, forbid_stale: bool = False) -> Question:
    return Question(Selection(), not_before, forbid_stale, deadline, stale_after=0.0, caller="somebody")


def ec2_with_pages(clock: VirtualClock) -> FakeEc2:
    ec2 = FakeEc2(clock, page_size=2)
    ec2.add_ended(2 * PAGES)
    return ec2


def assert_idle(tracked: Tracked) -> None:
    reader = tracked.reader
    assert (reader._running, reader._next, reader._task) == (None, None, None)


@given(CALLERS, st.integers(0, 3))
def test_any_callers_in_any_order_share_reads_and_leave_nothing(callers: list[Caller], faults: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ec2.fail(aws_error("InternalError", status=500), times=faults)
        began = clock()

        async def call(caller: Caller) -> None:
            await asyncio.sleep(caller.arrives)
            arrived = clock()
            question = asked(arrived - caller.max_age, arrived + 1000, forbid_stale=True)
            part = Part(ec2.target, tracked)
            with contextlib.suppress(TimeoutError):
                async with (
                    asyncio.timeout(caller.patience),
                    contextlib.aclosing(progress([part], question, clock)) as news,
                ):
                    async for _ in news:
                        assert_one_running_and_one_waiting()
                # The rest of the running read and one more, however many others came and went.
                assert clock() - arrived <= 2 * READ_SECONDS
                assert part.settled
                if part.error is None:
                    assert part.read_time is not None
                    assert part.read_time >= arrived - caller.max_age
                    assert len(part.view) == 2 * PAGES

        def assert_one_running_and_one_waiting() -> None:
            assert ec2.most_at_once <= 1

        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(call(caller))
        await settle()
        assert_idle(tracked)
        assert ec2.most_at_once <= 1
        # Listings follow one another; what was broken off by its last leaver may begin once more.
        assert ec2.lists <= (clock() - began) / READ_SECONDS + 2 * len(callers) + 1

    run(scenario)


def test_callers_at_once_cause_one_read() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ears = [Ear() for _ in range(1000)]
        reads = {tracked.reader.join(clock(), ear) for ear in ears}
        assert len(reads) == 1
        await asyncio.gather(*(ear.news() for ear in ears))
        await asyncio.sleep(LONG_ENOUGH)
        assert ec2.lists == 1
        assert len(ec2.calls) == PAGES

    run(scenario)


def test_who_comes_after_a_read_began_waits_for_the_next_which_all_latecomers_share() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        first = tracked.reader.join(clock(), Ear())
        await asyncio.sleep(LATENCY / 2)
        later = {tracked.reader.join(clock(), Ear()) for _ in range(5)}
        assert first not in later
        assert len(later) == 1
        await asyncio.sleep(2 * LONG_ENOUGH)
        assert ec2.lists == 2
        (second,) = later
        assert second.done
        assert second.started is not None
        assert first.started is not None
        assert second.started >= first.started + READ_SECONDS

    run(scenario)


def test_a_read_that_waits_for_its_budget_has_not_started_and_takes_everybody() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock, Allowance(capacity=10, refill=0.1, usable=1, initial=0))
        first = tracked.reader.join(clock(), Ear())
        await asyncio.sleep(9)
        assert tracked.reader.join(clock(), Ear()) is first
        await asyncio.sleep(30)
        assert first.done
        assert first.started is not None
        assert ec2.lists == 1

    run(scenario)


def test_the_last_to_leave_cancels_and_the_others_keep_theirs() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        one, other = Ear(), Ear()
        read = tracked.reader.join(clock(), one)
        assert tracked.reader.join(clock(), other) is read
        await asyncio.sleep(LATENCY / 2)
        tracked.reader.leave(read, one)
        await settle()
        assert not read.done
        tracked.reader.leave(read, other)
        await settle()
        assert read.done
        assert_idle(tracked)
        assert ec2.calls == []

    run(scenario)


def test_a_caller_who_comes_while_a_cancelled_read_is_on_its_way_out_gets_a_new_one() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ear = Ear()
        # Cancelled before its first step, and in the middle.
        for wait in (0.0, LATENCY / 2):
            dropped = tracked.reader.join(clock(), ear)
            await asyncio.sleep(wait)
            tracked.reader.leave(dropped, ear)
            taken = tracked.reader.join(clock() - 100, ear)
            assert taken is not dropped
            await asyncio.sleep(LONG_ENOUGH)
            assert taken.done
            assert taken.error is None

    run(scenario)


def test_an_error_reaches_all_who_share_and_is_not_kept() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ec2.fail(aws_error("InternalError", status=500))
        reads = {tracked.reader.join(clock(), Ear()) for _ in range(3)}
        await asyncio.sleep(LONG_ENOUGH)
        (read,) = reads
        assert read.error is not None
        assert tracked.reader.last_error is read.error
        again = tracked.reader.join(clock(), Ear())
        await asyncio.sleep(LONG_ENOUGH)
        assert again.error is None
        assert tracked.reader.last_error is None

    run(scenario)


def test_pages_are_seen_while_the_read_runs() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ear = Ear()
        read = tracked.reader.join(clock(), ear)
        began = clock()
        assert await ear.news() == [read]
        assert (clock() - began, len(read.pages), read.done) == (LATENCY, 1, False)
        assert await ear.news() == [read]
        assert (clock() - began, len(read.pages), read.done) == (READ_SECONDS, 2, True)

    run(scenario)


def test_an_expired_page_token_restarts_the_listing_once_and_counts_each_task_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        tracked = tracked_over(ec2, clock)
        ear = Ear()
        read = tracked.reader.join(clock(), ear)
        await asyncio.sleep(LATENCY * 1.5)
        ec2.expire_tokens()
        await asyncio.sleep(10 * LATENCY)
        assert read.done
        assert read.error is None
        rows: list[Any] = [entry.task.task_id for page in read.pages for entry in page]
        assert len(rows) == len(set(rows)) == 2 * PAGES

        ec2.between = lambda _: ec2.expire_tokens()
        # One that must be read to its end, as nothing is known of it.
        read = tracked_over(ec2, clock).reader.join(clock(), ear)
        await asyncio.sleep(10 * LATENCY)
        assert read.error is not None
        assert read.error.reason == "AWS_PAGE_EXPIRED"

    run(scenario)


def test_a_target_that_never_answered_has_no_source() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = ec2_with_pages(clock)
        part = Part(ec2.target, tracked_over(ec2, clock))
        ec2.fail(aws_error("RequestLimitExceeded", status=503))
        question = asked(clock(), clock() + 60)
        async with contextlib.aclosing(progress([part], question, clock)) as news:
            assert [each async for each in news] == [part]
        assert part.error is not None
        assert (part.source, part.error.reason) == (pb.SOURCE_NONE, "AWS_THROTTLED")

    run(scenario)
