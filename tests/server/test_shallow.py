"""Shallow reads see what full reads see, for a few calls."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_ec2 import Call, FakeEc2, Task, aws_error, image
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import VirtualClock, run

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.budget import Allowance, Budget
from imagetasks_server.refresh import Refresher
from imagetasks_server.tally import Tally
from imagetasks_server.upstream import Query, Upstream
from imagetasks_server.view import LATE_SECONDS, Entry, Revisions, View

PLENTY = Allowance(capacity=1e6, refill=1e6, usable=1.0, initial=1e6)
FULL_READ_EVERY = 600.0
FOREVER = 1e12


@dataclass
class Report:
    started: float | None = None
    paying: bool = True
    rows: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    waiters: list[Tally] = field(default_factory=list)

    def add(self, entries: list[Entry]) -> None:
        self.rows.extend(entry.task.task_id for entry in entries)


class Observer:
    """A view of its own of the same EC2, read in its own way."""

    def __init__(self, ec2: FakeEc2, clock: VirtualClock, *, always_full: bool = False) -> None:
        self.ec2 = ec2
        self.view = View(Revisions(), confirm_after=5.0)
        self.budget = Budget(PLENTY, clock)
        upstream = Upstream(ec2.read_page, self.budget, clock, timeout=60, remember_refusals_for=30)
        self.refresher = Refresher(
            self.view,
            upstream,
            clock,
            full_read_every=FULL_READ_EVERY,
            distrust_for=FOREVER if always_full else 1800.0,
        )
        if always_full:
            self.view.contradicted_at = clock()

    async def read(self) -> list[Call]:
        """Refresh, sweep on, and tell which calls that took."""
        before = len(self.ec2.calls)
        report = Report()
        await self.refresher.refresh(report)
        assert len(report.rows) == len(set(report.rows))
        await self.refresher.sweep(lambda: False)
        return self.ec2.calls[before:]

    def shown(self) -> dict[str, Any]:
        return {entry.task.bucket: _as_sent(entry.task) for entry in self.view.listed()}


def _as_sent(task: pb.StoreImageTaskResult) -> pb.StoreImageTaskResult:
    """Without its pace, which tells when it was seen and by whom."""
    sent = pb.StoreImageTaskResult()
    sent.CopyFrom(task)
    sent.ClearField("pace")
    return sent


def listed_buckets(ec2: FakeEc2) -> set[str]:
    return {task.bucket or "" for task in ec2.listed()}


class Fate:
    """What happens at EC2 between two reads, as hypothesis draws it."""

    def __init__(self, ec2: FakeEc2, data: st.DataObject) -> None:
        self.ec2 = ec2
        self._draw = data.draw
        self._hidden: list[Task] = []
        self._numbers = itertools.count()
        for age in data.draw(st.lists(st.floats(1, 30 * 86400), max_size=12)):
            task = self.start(age=age)
            if data.draw(st.booleans()):
                ec2.end(task)

    def start(self, ami_id: str | None = None, age: float = 0.0) -> Task:
        return self.ec2.add(ami_id, age=age, bucket=f"bucket-{next(self._numbers)}")

    def start_many(self) -> None:
        for _ in range(7):
            self.start()

    def store_again(self) -> None:
        if self.ec2.tasks:
            self.start(self._draw(st.sampled_from(self.ec2.tasks)).ami_id)

    def progress(self) -> None:
        if task := self._running():
            self.ec2.progress(task, min(100, (task.percentage or 0) + self._draw(st.integers(0, 30))))

    def end(self) -> None:
        if task := self._running():
            self.ec2.end(task, failed=self._draw(st.sampled_from([None, "AccessDenied"])))

    def hide(self) -> None:
        """EC2 is eventually consistent: one read lacks a task."""
        if self.ec2.tasks:
            self._hidden.append(self._draw(st.sampled_from(self.ec2.tasks)))
            self.ec2.remove(self._hidden[-1])

    def show(self) -> None:
        """The read is over."""
        self.ec2.tasks.extend(self._hidden)
        self._hidden.clear()

    def drop(self) -> None:
        """A task is gone for good."""
        if self.ec2.tasks:
            self.ec2.remove(self._draw(st.sampled_from(self.ec2.tasks)))

    def start_between_pages(self, call: Call) -> None:
        """So that EC2 lists some tasks twice."""
        if call.token and len(self.ec2.tasks) < 80:
            self.start()

    def _running(self) -> Task | None:
        running = [task for task in self.ec2.tasks if task.state == "InProgress"]
        return self._draw(st.sampled_from(running)) if running else None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [Fate.start, Fate.start_many, Fate.store_again, Fate.progress, Fate.end, Fate.hide, Fate.drop]
        ),
        st.sampled_from([2.0, 2.0, 30.0, 700.0]),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=80)
@given(st.data(), STEPS, st.integers(1, 5), st.booleans())
def test_shallow_reads_see_what_full_reads_see(
    data: st.DataObject, steps: list[tuple[Any, float, bool]], page_size: int, steady: bool
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock, page_size=page_size, steady_tokens=steady)
        fate = Fate(ec2, data)
        shallow, full = Observer(ec2, clock), Observer(ec2, clock, always_full=True)
        for happens, wait, moving in steps:
            await full.read()
            await shallow.read()
            happens(fate)
            clock.advance(wait)
            if moving:
                ec2.between = fate.start_between_pages
            await full.read()
            ec2.between = lambda _: None
            await shallow.read()
            seen, truth = shallow.shown(), full.shown()
            for bucket in listed_buckets(ec2) & set(truth):
                assert seen[bucket] == truth[bucket]
            fate.show()
        # What is gone for good is gone from both, after two full reads.
        for _ in range(4):
            clock.advance(FULL_READ_EVERY + 1)
            await full.read()
            await shallow.read()
        assert shallow.shown() == full.shown()
        assert set(shallow.shown()) == listed_buckets(ec2)

    run(scenario)


def test_ten_thousand_tasks_with_fifty_recent_in_progress_cost_one_call() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        ec2.add_ended(9_950, age=7200)
        running = [ec2.add(age=number * 60, bucket=f"running-{number}") for number in range(50)]
        observer = Observer(ec2, clock)
        assert len(await observer.read()) == 50
        for percentage in range(1, 20):
            clock.advance(5)
            for task in running:
                ec2.progress(task, percentage)
            assert len(await observer.read()) == 1
            shown = observer.shown()
            assert {shown[task.bucket or ""].progress_percentage for task in running} == {percentage}

    run(scenario)


def test_stragglers_deep_in_the_list_are_asked_by_image_twenty_to_a_call() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        stragglers = [ec2.add(age=20 * 86400 + number, bucket=f"deep-{number}") for number in range(25)]
        ec2.add_ended(3_000, age=3600)
        observer = Observer(ec2, clock)
        await observer.read()
        clock.advance(5)
        for task in stragglers:
            ec2.progress(task, 77)
        calls = await observer.read()
        assert [len(call.query.image_ids) for call in calls] == [0, 20, 5]
        shown = observer.shown()
        assert {shown[task.bucket or ""].progress_percentage for task in stragglers} == {77}

    run(scenario)


def test_a_straggler_whose_image_was_stored_again_is_reached_by_pages() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        straggler = ec2.add(image(1), age=20 * 86400, bucket="deep")
        ec2.add_ended(900, age=3600)
        observer = Observer(ec2, clock)
        await observer.read()
        clock.advance(5)
        ec2.add(image(1), bucket="new")
        ec2.progress(straggler, 50)
        calls = await observer.read()
        assert all(call.query == Query() for call in calls)
        assert observer.shown()["deep"].progress_percentage == 50

    run(scenario)


def test_a_straggler_whose_image_was_deregistered_is_reached_by_pages_from_then_on() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        task = ec2.add(image(1), age=20 * 86400, bucket="deep")
        other = ec2.add(image(2), age=20 * 86400, bucket="other")
        ec2.add_ended(900, age=3600)
        gone = aws_error("InvalidAMIID.NotFound", f"The image id '[{image(1)}]' does not exist")

        def deregistered(call: Call) -> None:
            if image(1) in call.query.image_ids:
                ec2.fail(gone)

        observer = Observer(ec2, clock)
        await observer.read()
        ec2.between = deregistered
        for percentage in (40, 60):
            clock.advance(5)
            ec2.progress(task, percentage)
            ec2.progress(other, percentage)
            await observer.read()
            assert observer.shown()["other"].progress_percentage == percentage
        assert observer.shown()["deep"].progress_percentage == 60

    run(scenario)


def test_a_task_listed_late_is_found_by_the_next_full_read_and_counted() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        ec2.add_ended(1000, age=10)
        observer = Observer(ec2, clock)
        await observer.read()
        clock.advance(LATE_SECONDS * 1.5)
        ec2.add(age=LATE_SECONDS * 20, state="Completed", bucket="late")
        await observer.read()
        assert "late" not in observer.shown()
        clock.advance(FULL_READ_EVERY)
        await observer.read()
        assert "late" in observer.shown()
        assert observer.view.contradictions == 1
        # Distrusted for a while: every page is read.
        clock.advance(5)
        assert len(await observer.read()) == 6

    run(scenario)


async def about_to_sweep(clock: VirtualClock, tasks: int) -> tuple[FakeEc2, Observer]:
    """A list that was read in full, and whose next full read is due and has begun with its head."""
    ec2 = FakeEc2(clock)
    ec2.add_ended(tasks, age=3600)
    observer = Observer(ec2, clock)
    await observer.read()
    clock.advance(FULL_READ_EVERY)
    await observer.refresher.refresh(Report())
    return ec2, observer


def test_a_sweep_answers_first_pauses_for_who_waits_and_goes_on_later() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, observer = await about_to_sweep(clock, 2000)
        calls = len(ec2.calls)
        await observer.refresher.sweep(lambda: len(ec2.calls) >= calls + 3)
        assert len(ec2.calls) == calls + 3
        before = observer.view.full_read_time
        assert before is not None
        clock.advance(5)
        calls = len(ec2.calls)
        await observer.read()
        # One for the head; the sweep has six of its ten pages to go, for the first was a head's.
        assert len(ec2.calls) == calls + 1 + 6
        assert observer.view.full_read_time == before + FULL_READ_EVERY

    run(scenario)


def test_a_sweep_stops_while_the_budget_is_low() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, observer = await about_to_sweep(clock, 2000)
        calls = len(ec2.calls)
        observer.budget.throttled()
        await observer.refresher.sweep(lambda: False)
        assert len(ec2.calls) == calls

    run(scenario)


def test_an_unfinished_task_that_is_no_longer_listed_hastens_the_full_reads() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        task = ec2.add(age=20 * 86400, bucket="gone")
        ec2.add_ended(900, age=3600)
        observer = Observer(ec2, clock)
        await observer.read()
        ec2.images.add(task.ami_id or "")
        ec2.remove(task)
        for _ in range(3):
            clock.advance(61)
            await observer.read()
        assert "gone" not in observer.shown()

    run(scenario)


@pytest.mark.parametrize("fault", ["InternalError", "RequestLimitExceeded"])
def test_a_sweep_that_fails_is_nobodys_error_and_goes_on_later(fault: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, observer = await about_to_sweep(clock, 900)
        ec2.fail(aws_error(fault, status=503))
        await observer.refresher.sweep(lambda: False)
        await observer.refresher.sweep(lambda: False)
        assert observer.view.full_read_time == clock()

    run(scenario)


def test_what_a_slow_read_shows_counts_from_when_its_pages_came() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2, observer = await about_to_sweep(clock, 2000)
        oldest, gone = ec2.tasks[-1], ec2.tasks[-2]
        ec2.end(oldest, failed="NoSuchBucket")
        clock.advance(300)
        await observer.refresher.sweep(lambda: False)
        assert observer.view.contradicted_at == clock()
        ec2.remove(gone)
        ec2.between = lambda _: clock.advance(1)
        for _ in range(2):
            await observer.read()
        (tombstone,) = [entry for entry in observer.view.changed_after(0) if entry.removed is not None]
        assert tombstone.gone_at == clock() == tombstone.removed_at + 10

    run(scenario)


def test_an_empty_list_costs_one_call() -> None:
    async def scenario(clock: VirtualClock) -> None:
        observer = Observer(FakeEc2(clock), clock)
        for _ in range(3):
            assert len(await observer.read()) == 1
            clock.advance(5)
        assert observer.shown() == {}

    run(scenario)
