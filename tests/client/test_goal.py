"""`--until-done`: what a watch must have shown before it ends, and why it does not end yet."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from scripted_gateway import outcome_event, page_event, reason, status, summary_event, task
from watch_events import (
    ENDED,
    Event,
    change,
    complete,
    group,
    snapshot,
    stale,
    started,
)

from imagetasks.cli.goal import GATEWAY, Goal
from imagetasks.errors import Error, PermissionDeniedError, UnavailableError, from_status
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import Held

DONE = task(**ENDED)
RUNNING = task()
HERE, THERE = "eu-central-1", "us-east-1"
THROTTLED = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", reason("AWS_THROTTLED"))
DENIED = status(grpc.StatusCode.PERMISSION_DENIED, "no", reason("AWS_UNAUTHORIZED_OPERATION"))
MAY_NOT = status(grpc.StatusCode.PERMISSION_DENIED, "not this method", reason("METHOD_NOT_PERMITTED"))
GOOD = outcome_event()


class Watcher:
    """A watch that hears what a test says, with a goal.

    Attributes:
        answer: What the gateway says when the tasks are asked for.
        asked: How often they were.
    """

    def __init__(self, *image_ids: str) -> None:
        self.answer: Iterable[pb.StreamStoreImageTasksResponse] | Error = [GOOD, summary_event()]
        self.asked = 0
        self.goal = Goal(image_ids, self._ask)
        self.watch = Held(lambda _: None, pb.TaskSelector())

    @contextmanager
    def _ask(self) -> Iterator[Iterable[pb.StreamStoreImageTasksResponse]]:
        self.asked += 1
        if isinstance(self.answer, Error):
            raise self.answer
        yield self.answer

    def hear(self, *messages: Event) -> bool:
        """Whether the goal is reached after the last of them; it must not be before."""
        *first, last = (self._hear(each) for each in messages)
        assert not any(first)
        return last

    def _hear(self, message: Event) -> bool:
        self.watch._received(message)
        return self.goal.is_reached(self.watch, self.watch._taken())


def test_it_is_reached_when_all_have_ended() -> None:
    watcher = Watcher()
    assert not watcher.hear(started(), *snapshot("s", RUNNING))
    assert (watcher.asked, watcher.goal.hindrances) == (0, {})
    watcher.answer = [page_event(DONE), GOOD]
    assert watcher.hear(group("g", change("MODIFIED", DONE)))


def test_nothing_at_all_has_ended_too() -> None:
    assert Watcher().hear(started(), *snapshot("s"))


def test_a_task_that_the_gateway_had_not_seen_is_waited_for() -> None:
    watcher = Watcher()
    watcher.answer = [page_event(task(number=2), DONE), GOOD]
    assert not watcher.hear(started(), *snapshot("s", DONE))
    assert watcher.goal.hindrances == {}


def test_a_task_that_began_and_ended_unseen_is_shown_first() -> None:
    watcher = Watcher()
    quick = task(number=2, **ENDED)
    watcher.answer = [page_event(quick, DONE), GOOD]
    assert not watcher.hear(started(), *snapshot("s", DONE))
    assert watcher.hear(group("g", change("ADDED", quick)))


def test_an_ami_without_a_task_is_waited_for() -> None:
    watcher = Watcher(DONE.ami_id)
    assert not watcher.hear(started(), *snapshot("s"))
    assert watcher.goal.hindrances == {DONE.ami_id: "it has no store task yet"}
    watcher.answer = [page_event(DONE), GOOD]
    assert not watcher.hear(group("a", change("ADDED", RUNNING)))
    assert watcher.goal.hindrances == {}
    assert watcher.hear(group("g", change("MODIFIED", DONE)))


def test_a_task_that_left_the_filters_sight_by_ending_has_been_there() -> None:
    watcher = Watcher(DONE.ami_id)
    assert not watcher.hear(started(), *snapshot("s", RUNNING))
    assert watcher.hear(group("g", change("REMOVED", DONE, "NO_MATCH")))


def test_a_target_that_was_not_read_is_waited_for() -> None:
    watcher = Watcher()
    assert not watcher.hear(started(HERE, THERE), *snapshot("s", DONE))
    assert watcher.goal.hindrances == {f"prod/{THERE}": "it has not been read yet"}
    watcher.answer = [page_event(DONE), GOOD]
    assert watcher.hear(complete("t", THERE))


def test_what_cannot_be_read_for_now_is_waited_for() -> None:
    watcher = Watcher()
    assert not watcher.hear(started(), stale(HERE, THROTTLED), *snapshot("s", DONE))
    assert watcher.goal.hindrances == {f"prod/{HERE}": "AWS_THROTTLED: slow down"}
    watcher.answer = [page_event(DONE), GOOD]
    assert watcher.hear(stale(HERE, None))


def test_an_account_whose_regions_cannot_be_found_out_is_waited_for() -> None:
    watcher = Watcher()
    watcher.answer = [outcome_event("", THROTTLED, pb.SOURCE_NONE)]
    nothing = started()
    nothing.started.ClearField("targets")
    assert not watcher.hear(nothing)
    assert watcher.goal.hindrances == {"prod": "AWS_THROTTLED: slow down"}
    watcher.answer = [GOOD]
    assert not watcher.hear(stale("", THROTTLED))
    assert watcher.goal.hindrances == {"prod": "AWS_THROTTLED: slow down"}
    assert watcher.hear(*snapshot("s"))


def test_what_the_watch_is_about_to_call_stale_is_waited_for() -> None:
    watcher = Watcher()
    watcher.answer = [outcome_event(failure=THROTTLED, source=pb.SOURCE_NONE)]
    assert not watcher.hear(started(), *snapshot("s"))
    assert watcher.goal.hindrances == {f"prod/{HERE}": "AWS_THROTTLED: slow down"}


def test_what_stays_unreadable_is_not_waited_for_but_named() -> None:
    watcher = Watcher()
    watcher.answer = [GOOD, outcome_event(THERE, DENIED, pb.SOURCE_NONE)]
    assert watcher.hear(started(HERE, THERE), stale(THERE, DENIED), *snapshot("s"))
    assert watcher.goal.refused == {f"prod/{THERE}": "AWS_UNAUTHORIZED_OPERATION: no"}


def test_what_was_refused_and_is_permitted_just_now_is_shown_first() -> None:
    watcher = Watcher()
    assert not watcher.hear(started(), stale(HERE, DENIED))
    watcher.answer = [page_event(DONE), GOOD]
    assert watcher.hear(*snapshot("s", DONE))


def test_a_lost_connection_is_waited_for() -> None:
    watcher = Watcher()
    watcher.answer = UnavailableError(status(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert not watcher.hear(started(), *snapshot("s"))
    assert watcher.goal.hindrances == {GATEWAY: "UNAVAILABLE: gone"}
    watcher.watch._interrupted(None)
    assert not watcher.goal.is_reached(watcher.watch, [])
    assert watcher.goal.hindrances == {GATEWAY: "the connection is lost: it was closed"}


def test_an_error_that_stays_is_raised() -> None:
    watcher = Watcher()
    watcher.answer = from_status(status(grpc.StatusCode.UNAUTHENTICATED, "who", reason("CREDENTIAL_EXPIRED")))
    with pytest.raises(Error, match="who"):
        watcher.hear(started(), *snapshot("s"))


def test_who_may_only_watch_hears_first_whether_that_is_stale() -> None:
    watcher = Watcher()
    watcher.answer = PermissionDeniedError(MAY_NOT)
    assert not watcher.hear(started(), *snapshot("s"), stale(HERE, THROTTLED))
    assert watcher.goal.hindrances == {f"prod/{HERE}": "AWS_THROTTLED: slow down"}
    assert watcher.hear(stale(HERE, None))


def test_who_may_only_watch_reaches_it_with_the_next_message() -> None:
    watcher = Watcher()
    watcher.answer = PermissionDeniedError(MAY_NOT)
    assert watcher.hear(started(), *snapshot("s"), Event(heartbeat=Event.Heartbeat(), resume_token="h"))


def test_the_reason_is_a_sentence() -> None:
    watcher = Watcher("ami-1")
    assert watcher.goal.reason == "tasks are still in progress"
    watcher.hear(started(), *snapshot("s"))
    assert watcher.goal.reason == "no news of ami-1 (it has no store task yet)"
