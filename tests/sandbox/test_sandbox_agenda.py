import threading
from datetime import UTC, datetime, timedelta
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from imagetasks_sandbox.agenda import Agenda

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time


@given(st.lists(st.integers(0, 100)), st.integers(0, 100))
def test_what_is_due_runs_once_and_in_order_of_its_time(seconds: list[int], now: int) -> None:
    clock, ran = Clock(), list[int]()
    agenda = Agenda(clock)
    for each in seconds:
        agenda.at(NOON + timedelta(seconds=each), partial(ran.append, each))
    clock.time += timedelta(seconds=now)
    agenda.run_due()
    agenda.run_due()
    assert ran == sorted(each for each in seconds if each <= now)


def test_an_action_may_enter_others() -> None:
    clock, ran = Clock(), list[str]()
    agenda = Agenda(clock)

    def first() -> None:
        ran.append("first")
        agenda.at(NOON, lambda: ran.append("second"))

    agenda.at(NOON, first)
    agenda.run_due()
    assert ran == ["first", "second"]


def test_the_thread_runs_what_is_entered_while_it_naps_and_ends_when_stopped() -> None:
    agenda = Agenda(lambda: datetime.now(UTC))
    agenda.at(datetime.now(UTC) + timedelta(days=1), lambda: None)
    thread = threading.Thread(target=agenda.run)
    thread.start()
    ran = threading.Event()
    agenda.at(datetime.now(UTC), ran.set)
    assert ran.wait(10)
    agenda.stop()
    thread.join(10)
    assert not thread.is_alive()
