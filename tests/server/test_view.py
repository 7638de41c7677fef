"""A view against a model, through random worlds and random faults of reading."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.selection import Selection, order_of
from imagetasks_server.view import HISTORY_SECONDS, Listing, Revisions, View

START = 1_700_000_000.0
CONFIRM = 5.0
WORDS = {
    "InProgress": pb.STORE_TASK_STATE_IN_PROGRESS,
    "Completed": pb.STORE_TASK_STATE_COMPLETED,
    "Failed": pb.STORE_TASK_STATE_FAILED,
}
ENDED = {pb.STORE_TASK_STATE_COMPLETED, pb.STORE_TASK_STATE_FAILED}


def a_task(number: int, *, state: str = "InProgress", progress: int | None = 0, at: float = START) -> Any:
    task = pb.StoreImageTaskResult(
        task_id=f"task-{number:04}",
        ami_id=f"ami-{number % 3:08x}",
        bucket="images",
        ec2_store_task_state=state,
        store_task_state=WORDS.get(state, pb.STORE_TASK_STATE_UNSPECIFIED),
    )
    task.task_start_time.FromMilliseconds(int((at + number) * 1000))
    if progress is not None:
        task.progress_percentage = progress
    return task


def read(view: View, started: float, *pages: list[Any], full: bool = True) -> list[list[Any]]:
    listing = Listing(started, full=full)
    applied = [view.apply(listing, page, started) for page in pages]
    view.finish(listing, started)
    return applied


def shown(view: View) -> dict[str, Any]:
    return {entry.task.task_id: entry.task for entry in view.listed()}


class ViewThroughTime(RuleBasedStateMachine):
    """A world changes, reads see it more or less truly, and three followers catch up when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.revisions = Revisions()
        self.view = View(self.revisions, confirm_after=CONFIRM, keep_tombstones=4, keep_tombstones_for=60)
        self.world: dict[int, Any] = {}
        self.now = START + 10_000
        self.next_number = 0
        self.before: dict[str, Any] = {}
        self.followers: list[tuple[int, dict[str, Any]]] = [(0, {}) for _ in range(3)]
        self.past: list[tuple[int, dict[str, str]]] = []
        self.absences: dict[str, list[float]] = {}

    @rule(count=st.integers(1, 4))
    def tasks_start(self, count: int) -> None:
        for _ in range(count):
            self.world[self.next_number] = a_task(self.next_number)
            self.next_number += 1

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def a_task_moves_on(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world)))
        state = data.draw(st.sampled_from(["InProgress", "Completed", "Failed", "Resting"]))
        progress = data.draw(st.one_of(st.none(), st.integers(0, 100)))
        # The world itself may lie: EC2 is eventually consistent.
        self.world[number] = a_task(number, state=state, progress=progress)

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def a_task_goes(self, data: st.DataObject) -> None:
        del self.world[data.draw(st.sampled_from(sorted(self.world)))]

    @rule(data=st.data(), wait=st.sampled_from([0.0, 1.0, CONFIRM, 30.0, 100.0]))
    def a_full_read(self, data: st.DataObject, wait: float) -> None:
        self.now += wait
        listed = sorted(self.world.values(), key=order_of)
        hidden = (
            data.draw(st.sets(st.sampled_from([t.task_id for t in listed]), max_size=2)) if listed else set()
        )
        listed = [task for task in listed if task.task_id not in hidden]
        cut = data.draw(st.integers(0, len(listed)))
        overlap = data.draw(st.integers(0, 2))
        pages = [listed[:cut], listed[max(0, cut - overlap) :]]
        rows = [entry.task.task_id for page in read(self.view, self.now, *pages) for entry in page]
        assert len(rows) == len(set(rows)) == len(listed)
        seen = set(rows)
        for task_id in [*self.before, *seen]:
            if task_id in seen:
                self.absences.pop(task_id, None)
            else:
                self.absences.setdefault(task_id, []).append(self.now)
        self.check_step()

    @rule(data=st.data())
    def a_read_that_breaks_off(self, data: st.DataObject) -> None:
        listed = sorted(self.world.values(), key=order_of)
        page = listed[: data.draw(st.integers(0, len(listed)))]
        self.view.apply(Listing(self.now), page, self.now)
        for task in page:
            self.absences.pop(task.task_id, None)
        self.check_step()

    @rule(which=st.integers(0, 2))
    def a_follower_catches_up(self, which: int) -> None:
        revision, held = self.followers[which]
        if revision < self.view.floor:
            held = dict(shown(self.view))
        else:
            for entry in self.view.changed_after(revision):
                assert entry.changed > revision
                if entry.removed is None:
                    held[entry.task.task_id] = entry.task
                else:
                    held.pop(entry.task.task_id, None)
        assert held == shown(self.view)
        self.followers[which] = (self.revisions.last, held)

    def check_step(self) -> None:
        after = shown(self.view)
        for task_id, old in self.before.items():
            new = after.get(task_id)
            if new is None:
                first, *later = self.absences[task_id]
                assert later
                assert later[-1] - first >= CONFIRM
                continue
            assert not (old.store_task_state in ENDED and new.store_task_state not in ENDED)
            if new.HasField("progress_percentage"):
                assert new.progress_percentage >= old.progress_percentage
        self.before = dict(after)
        states = {task_id: task.ec2_store_task_state for task_id, task in after.items()}
        self.past.append((self.revisions.last, states))

    @invariant()
    def the_counts_are_true(self) -> None:
        listed = self.view.listed()
        assert len(self.view) == len(listed)
        assert self.view.in_progress == sum(e.task.store_task_state not in ENDED for e in listed)

    @invariant()
    def newest_come_first_and_once(self) -> None:
        orders = [entry.order for entry in self.view.listed()]
        assert orders == sorted(set(orders))

    @invariant()
    def past_states_can_be_computed(self) -> None:
        for revision, states in self.past[-5:]:
            for entry in self.view.listed():
                task_id = entry.task.task_id
                if task_id in states and entry.created <= revision:
                    assert entry.state_at(revision) == states[task_id]

    @invariant()
    def few_tombstones_are_kept(self) -> None:
        tombstones = [e for e in self.view.changed_after(0) if e.removed is not None]
        assert len(tombstones) <= 4


ViewThroughTime.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestViewThroughTime = ViewThroughTime.TestCase


def test_one_absence_is_no_removal() -> None:
    view = View(Revisions(), confirm_after=CONFIRM)
    read(view, START, [a_task(1), a_task(2)])
    read(view, START + 100, [a_task(1)])
    assert len(view) == 2
    read(view, START + 100 + CONFIRM - 1, [a_task(1)])
    assert len(view) == 2
    read(view, START + 100 + CONFIRM, [a_task(1)])
    assert list(shown(view)) == ["task-0001"]
    (gone,) = [entry for entry in view.changed_after(0) if entry.removed is not None]
    assert gone.removed == pb.TaskChange.REMOVAL_REASON_NOT_REPORTED


def test_a_task_seen_again_starts_its_absence_anew() -> None:
    view = View(Revisions(), confirm_after=CONFIRM)
    read(view, START, [a_task(1)])
    read(view, START + 10, [])
    read(view, START + 20, [a_task(1)])
    read(view, START + 30, [])
    assert len(view) == 1


def test_past_31_days_one_absence_is_enough() -> None:
    view = View(Revisions(), confirm_after=CONFIRM)
    read(view, START, [a_task(1)])
    read(view, START + HISTORY_SECONDS + 2, [])
    assert len(view) == 0
    (gone,) = view.changed_after(0)
    assert gone.removed == pb.TaskChange.REMOVAL_REASON_AGED_OUT


def test_an_old_task_that_is_still_listed_stays() -> None:
    view = View(Revisions(), confirm_after=CONFIRM)
    for late in (0.0, HISTORY_SECONDS + 100):
        read(view, START + late, [a_task(1)])
    assert len(view) == 1


def test_a_removed_task_that_is_listed_again_is_back() -> None:
    view = View(Revisions(), confirm_after=0.0)
    read(view, START, [a_task(1)])
    read(view, START + 1, [])
    assert len(view) == 0
    before = view.revision
    read(view, START + 2, [a_task(1)])
    assert len(view) == 1
    assert [entry.removed for entry in view.changed_after(before)] == [None]


def test_a_partial_read_removes_nothing_and_is_no_read_of_the_list() -> None:
    view = View(Revisions(), confirm_after=0.0)
    read(view, START, [a_task(1), a_task(2)])
    view.apply(Listing(START + 50, full=False), [a_task(1, progress=7)], START + 50)
    assert len(view) == 2
    assert view.read_time == START
    assert shown(view)["task-0001"].progress_percentage == 7


def test_equal_news_are_no_change() -> None:
    view = View(Revisions())
    read(view, START, [a_task(1)])
    before = view.revision
    read(view, START + 1, [a_task(1)])
    assert view.revision == before


def test_a_contradiction_is_counted_and_not_believed() -> None:
    view = View(Revisions())
    read(view, START, [a_task(1, state="Completed", progress=100)])
    read(view, START + 1, [a_task(1, state="InProgress", progress=40)])
    assert view.contradictions == 1
    assert shown(view)["task-0001"].ec2_store_task_state == "Completed"


def test_a_read_lets_the_memory_of_old_reads_go() -> None:
    view = View(Revisions())

    def page(progress: int) -> Any:
        parent = pb.DescribeStoreImageTasksResponse()
        parent.store_image_task_results.extend([a_task(1, progress=progress), a_task(2)])
        return parent.store_image_task_results

    read(view, START, page(1))
    held = [entry.task for entry in view.listed()]
    read(view, START + 1, page(1))
    now_held = [entry.task for entry in view.listed()]
    assert now_held == held
    assert all(new is not old for new, old in zip(now_held, held, strict=True))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), unique=True, max_size=30), st.data())
def test_newest_only_shows_one_task_of_each_image_and_continues_anywhere(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    view = View(Revisions())
    tasks = []
    for number, (image, at) in enumerate(pairs):
        task = a_task(number, at=START + at * 100)
        task.ami_id = f"ami-{image:08x}"
        tasks.append(task)
    read(view, START, tasks)
    wanted = frozenset({"ami-00000000", "ami-00000001"})
    selection = Selection(image_ids=wanted, newest_only=True)
    rows = list(view.selected(selection))
    for row in rows:
        rivals = [t for t in tasks if t.ami_id == row.task.ami_id]
        assert row.order == min(order_of(task) for task in rivals)
    assert {row.task.ami_id for row in rows} == {t.ami_id for t in tasks} & wanted
    if rows:
        after = data.draw(st.sampled_from(rows))
        assert list(view.selected(selection, after.order)) == rows[rows.index(after) + 1 :]


def test_a_new_view_continues_no_place_that_an_earlier_view_of_the_target_gave() -> None:
    revisions = Revisions()
    earlier = View(revisions)
    read(earlier, START, [a_task(1)])
    place = revisions.last
    assert View(revisions).floor > place


def test_a_task_stalls_from_when_a_slow_read_showed_that_it_rose() -> None:
    view = View(Revisions(), stalled_after=1800)
    read(view, START, [a_task(1, progress=40)])
    sweep = Listing(START)
    view.apply(sweep, [a_task(1, progress=41)], START + 1750)
    assert _pace(view).last_progress_time.seconds == START + 1750
    read(view, START + 1805, [a_task(1, progress=41)], full=False)
    assert not _pace(view).stalled
    read(view, START + 1750 + 1800, [a_task(1, progress=41)], full=False)
    assert _pace(view).stalled


def test_a_contradiction_counts_from_when_a_slow_read_showed_it() -> None:
    view = View(Revisions())
    read(view, START, [a_task(1, state="Completed", progress=100)])
    view.apply(Listing(START), [a_task(1, state="Failed", progress=100)], START + 900)
    assert view.contradicted_at == START + 900


def test_a_tombstone_is_kept_from_when_it_was_told() -> None:
    view = View(Revisions(), confirm_after=CONFIRM, keep_tombstones_for=600)
    read(view, START, [a_task(1)])
    read(view, START + CONFIRM, [])
    before = view.floor
    view.finish(Listing(START + 2 * CONFIRM), START + 300)
    assert len(view) == 0
    view.finish(Listing(START + 310), START + 300 + 599)
    assert view.floor == before
    view.finish(Listing(START + 320), START + 300 + 600)
    assert view.floor > before


def test_an_estimate_is_made_anew_with_each_change_and_with_nothing_else() -> None:
    view = View(Revisions(), confirm_after=0.0)
    read(view, START + 1000, [a_task(1, progress=98)])
    read(view, START + 1010, [a_task(1, progress=99)])
    reason = a_task(1, progress=99)
    reason.store_task_failure_reason = "slow"
    resting = a_task(1, state="Resting", progress=99)
    for at, task, is_news in (
        (START + 1200, a_task(1, progress=99), False),
        (START + 1300, reason, True),
        (START + 1400, resting, True),
    ):
        revision, before = view.revision, _pace(view)
        read(view, at, [task])
        assert (view.revision > revision) == is_news
        assert (_pace(view) != before) == is_news
        assert not is_news or _pace(view).estimated_completion_time.seconds >= at
    read(view, START + 1500, [])
    assert len(view) == 0
    read(view, START + 1600, [resting])
    assert _pace(view).estimated_completion_time.seconds >= START + 1600


def _pace(view: View) -> pb.TaskPace:
    (entry,) = view.listed()
    return entry.task.pace
