"""What is told of a task's pace is right within a stated factor, whatever its course and its readers."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.pace import MARKS, UNUSUAL, Pace

START: Final = 1_800_000_000.0
# Seconds between looks at a task that somebody follows.
FOLLOWED: Final = 5.0
# Percent per second: three hours to a minute and a half in all.
RATES = st.floats(0.01, 1.0)
# Each percent of which is seen while somebody follows.
SLOW_RATES = st.floats(0.002, 0.1)


@dataclass(frozen=True)
class Course:
    """How a task comes along.

    Attributes:
        pieces: Seconds, and the true percent per second in them, one after the other.
        shown: From the true percentage to what EC2 says.
    """

    pieces: tuple[tuple[float, float], ...]
    shown: Callable[[float], int] = int

    def at(self, after: float) -> float:
        """The true percentage so many seconds after the start."""
        done = 0.0
        for seconds, rate in self.pieces:
            done += min(seconds, after) * rate
            after -= min(seconds, after)
        return done

    def when(self, done: float) -> float:
        """The first moment at which it stood there, seconds after the start."""
        after = 0.0
        for seconds, rate in self.pieces:
            if done <= seconds * rate:
                return after + done / rate
            after, done = after + seconds, done - seconds * rate
        return math.inf


class Told(NamedTuple):
    """What is said when a rise is seen."""

    after: float
    percentage: int
    rate: float
    pace: pb.TaskPace


def told(course: Course, looks: Iterable[float]) -> Iterator[Told]:
    """Of each rise that is seen by looking so many seconds after the start, until the task has completed."""
    pace: Pace | None = None
    for after in looks:
        if (done := course.at(after)) >= 100:
            return
        percentage = course.shown(done)
        if pace is None:
            pace = Pace(percentage, START + after, START)
        elif pace.see(percentage, START + after):
            message = pace.message(START + after)
            yield Told(after, percentage, message.percent_per_second, message)


@st.composite
def looks(draw: st.DrawFn) -> list[float]:
    """From any moment on, now often, now after minutes."""
    spells = st.tuples(st.integers(1, 30), st.sampled_from([FOLLOWED, 5.4, 30.0, 90.0, 400.0]))
    gaps = [gap for count, gap in draw(st.lists(spells, min_size=1, max_size=30)) for _ in range(count)]
    return list(itertools.accumulate([draw(st.floats(0, 3000)), *gaps]))


def followed(course: Course, since: int = 0) -> Iterator[float]:
    """Looks every few seconds, without those that find what the ones before and after them find."""
    for percentage in range(since, 100):
        look = -(-course.when(percentage) // FOLLOWED) * FOLLOWED
        yield from (look, max(look, course.when(percentage + 1) // FOLLOWED * FOLLOWED))


def off(told: float, true: float) -> float:
    """By which factor."""
    return max(told / true, true / told)


@given(RATES, looks())
def test_an_even_course_is_told_right_however_it_is_looked_at(rate: float, looks: list[float]) -> None:
    for number, each in enumerate(told(Course(((1e9, rate),)), looks), 1):
        # At a look it may stand at nearly one percent more than it says.
        assert off(each.rate, rate) <= (2 if number <= MARKS else 1.25)


@given(RATES, looks(), st.lists(st.integers(1, 9), min_size=100, max_size=100))
def test_a_course_in_steps_is_told_right(rate: float, looks: list[float], steps: list[int]) -> None:
    shown = list(itertools.accumulate(steps, initial=0))
    course = Course(((1e9, rate),), lambda done: shown[bisect.bisect_right(shown, done) - 1])
    for number, each in enumerate(told(course, looks), 1):
        if number >= 2:
            assert off(each.rate, rate) <= (4 if number <= MARKS else 1.75)


@given(
    SLOW_RATES,
    st.integers(0, 50),
    st.lists(st.tuples(st.floats(4, 30), st.floats(1, 86400)), min_size=1, max_size=10),
)
def test_pauses_do_not_count(rate: float, seen_at: int, pauses: list[tuple[float, float]]) -> None:
    pieces = [(percent / rate, rate) for percent, _ in pauses]
    rests = [(seconds, 0.0) for _, seconds in pauses]
    course = Course((*itertools.chain(*zip(pieces, rests, strict=True)), (1e9, rate)))
    for number, each in enumerate(told(course, followed(course, seen_at)), 1):
        if number >= 4:
            # What takes up to three times as long as usual is no pause yet.
            assert off(each.rate, rate) <= (UNUSUAL if number <= MARKS else 1.75)


@given(SLOW_RATES, st.floats(0.1, 10), st.integers(5, 80))
def test_another_speed_is_followed_within_a_few_rises(rate: float, factor: float, until: int) -> None:
    course = Course(((until / rate, rate), (1e9, rate * factor)))
    rises = [each for each in told(course, followed(course)) if each.percentage > until]
    assert all(off(each.rate, rate * factor) <= 2.5 for each in rises[4:])
    assert all(off(each.rate, rate * factor) <= 1.5 for each in rises[MARKS:])


def test_after_a_long_pause_it_is_told_as_before() -> None:
    course = Course(((400, 0.1), (1200, 0.0), (1e9, 0.1)))
    for each in told(course, followed(course, 10)):
        assert each.rate == pytest.approx(0.1, rel=0.01)
        assert _ends(each.pace) == pytest.approx(START + each.after + (100 - each.percentage) * 10, rel=0.01)


@given(
    st.integers(-10, 110),
    st.floats(-1e6, 1e6) | st.none(),
    st.lists(st.tuples(st.sampled_from([0.0, 1e-6, 1.0, 5.0, 3600.0]), st.integers(-10, 110)), max_size=30),
)
def test_whatever_is_seen_the_estimate_never_lies_in_the_past(
    percentage: int, started: float | None, seen: list[tuple[float, int]]
) -> None:
    now = START
    pace = Pace(percentage, now, None if started is None else START - started)
    highest = max(0, percentage)
    has_risen = False
    for wait, each in seen:
        now += wait
        rose = pace.see(each, now)
        assert rose == (each > highest)
        has_risen |= rose
        highest = max(highest, each)
        message = pace.message(now)
        assert _seconds(message.last_progress_time) <= now + 1e-6
        if message.HasField("estimated_completion_time"):
            assert has_risen
            assert message.percent_per_second > 0
            assert _ends(message) >= now - 1e-6


def test_a_task_that_rests_is_not_taken_to_go_on_unseen() -> None:
    pace = Pace(0, START, START)
    pace.see(10, START + 100)
    # Ten seconds for a percent; nobody saw the eleventh.
    for rested, left in ((0, 900), (4, 896), (1000, 890)):
        assert _ends(pace.message(START + 100 + rested)) == pytest.approx(START + 100 + rested + left)


def test_a_task_stalls_once_until_it_rises() -> None:
    pace = Pace(10, START, None)
    assert not pace.stall(START + 59, after=60)
    assert pace.stall(START + 60, after=60)
    assert not pace.stall(START + 61, after=60)
    assert pace.see(11, START + 70)
    assert pace.message(START + 70).HasField("estimated_completion_time") is False
    assert not pace.stall(START + 129, after=60)
    assert pace.stall(START + 130, after=60)
    assert pace.message(START + 130).stalled


def _ends(pace: pb.TaskPace) -> float:
    return _seconds(pace.estimated_completion_time)


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9
