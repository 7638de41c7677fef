from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from imagetasks_sandbox.tasks import VISIBLE_FOR, Book, State, Task, Trouble

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def task(started: datetime = NOON, trouble: Trouble | None = None, lasts: float = 100) -> Task:
    return Task(
        ami_id="ami-0123456789abcdef0",
        bucket="archive",
        key="ami-0123456789abcdef0.bin",
        size_gib=8,
        started=started,
        lasts=timedelta(seconds=lasts),
        trouble=trouble,
    )


@given(
    lasts=st.floats(0.001, 1e6),
    moments=st.lists(st.floats(-10, 2e6), min_size=2),
)
def test_a_percentage_never_falls_and_is_below_100_until_the_task_completes(
    lasts: float, moments: list[float]
) -> None:
    storing = task(lasts=lasts)
    seen = [storing.percentage(NOON + timedelta(seconds=moment)) for moment in sorted(moments)]
    assert seen == sorted(seen)
    assert all(0 <= percentage <= 99 for percentage in seen)
    storing.complete()
    assert storing.percentage(NOON) == 100


@given(share=st.floats(0, 1), late=st.floats(0, 1e6))
def test_a_failed_task_keeps_the_percentage_it_had_when_it_was_due(share: float, late: float) -> None:
    failing = task(trouble=Trouble(share, "InternalError"))
    at_due = failing.percentage(failing.due)
    failing.fail("InternalError", failing.due + timedelta(seconds=late))
    assert failing.state is State.FAILED
    assert failing.percentage(NOON + timedelta(days=1)) == at_due
    assert failing.failure_reason == "InternalError"


def test_a_task_with_trouble_is_due_at_its_share_of_the_time() -> None:
    assert task().due == NOON + timedelta(seconds=100)
    assert task(trouble=Trouble(0.25, "why")).due == NOON + timedelta(seconds=25)


ages = st.lists(st.integers(0, 40 * 24 * 3600), max_size=50).map(
    lambda seconds: [timedelta(seconds=each) for each in seconds]
)


@given(ages)
def test_a_book_lists_the_last_31_days_newest_first_in_whatever_order_tasks_came(
    of_tasks: list[timedelta],
) -> None:
    book = Book()
    for age in of_tasks:
        book.add(task(NOON - age))
    listed = [each.started for _, each in book.newest_first(NOON)]
    assert listed == sorted((NOON - age for age in of_tasks if age <= VISIBLE_FOR), reverse=True)


@given(ages, st.data())
def test_behind_a_place_come_exactly_the_tasks_after_it(
    of_tasks: list[timedelta], data: st.DataObject
) -> None:
    book = Book()
    for age in of_tasks:
        book.add(task(NOON - age))
    places = [place for place, _ in book.newest_first(NOON)]
    if places:
        index = data.draw(st.integers(0, len(places) - 1))
        assert [place for place, _ in book.newest_first(NOON, places[index])] == places[index + 1 :]


def test_a_book_forgets_what_is_too_old_and_what_is_too_many_but_nothing_in_progress() -> None:
    book = Book()
    for days in (40, 30, 20, 10):
        each = task(NOON - timedelta(days=days))
        each.complete()
        book.add(each)
    book.forget(NOON, most=2)
    assert [NOON - each.started for _, each in book.newest_first(NOON)] == [
        timedelta(days=10),
        timedelta(days=20),
    ]
    book = Book()
    for _ in range(3):
        book.add(task())
    book.forget(NOON, most=1)
    assert len(book) == len(book.in_progress()) == 3
