"""The state of a watch: what the application is told of messages, resets and interruptions."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from scripted_gateway import reason, status, task
from watch_events import (
    ENDED,
    FAILED,
    Event,
    at,
    change,
    closing,
    complete,
    group,
    heartbeat,
    reset,
    snapshot,
    stale,
    started,
)

from imagetasks.backoff import Backoff
from imagetasks.errors import Error, from_status
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watching import OPENING_SECONDS, Change, Watched


class Line:
    """A watch, and what its application has heard."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watched = Watched(pb.TaskSelector(), Backoff(first=1.0, most=8.0, uniform=lambda _, most: most))

    def hear(self, *messages: Event) -> list[tuple[str, str, int]]:
        return [told(change) for message in messages for change in self.watched.received(message, self.now)]

    def changes(self, *messages: Event) -> list[Change]:
        return [change for message in messages for change in self.watched.received(message, self.now)]

    def cut(self, error: Error | None = None) -> float:
        return self.watched.interrupted(error, self.now)

    @property
    def token(self) -> str:
        return self.watched.request.resume_token


def told(change: Change) -> tuple[str, str, int]:
    name = pb.TaskChange.Type.Name(change.type).removeprefix("TYPE_")
    return name, change.task.task_id, change.task.progress_percentage


@pytest.fixture
def line() -> Line:
    line = Line()
    line.hear(started(), *snapshot("s", at(10), at(20, 2)))
    return line


def error(code: grpc.StatusCode, *reasons: str) -> Error:
    return from_status(status(code, "text", *(reason(each) for each in reasons)))


def test_a_snapshot_is_told_when_it_is_complete() -> None:
    line = Line()
    first, last = snapshot("s", at(10), at(20, 2))
    assert line.hear(started(), first) == []
    assert not line.watched.is_caught_up
    assert line.changes(last)[0].is_first
    assert line.watched.is_caught_up
    assert line.token == "s"


def test_a_group_is_applied_at_its_end(line: Line) -> None:
    assert line.hear(group(None, change("MODIFIED", at(11)))) == []
    assert line.watched.tasks["task-1"].progress_percentage == 10
    assert line.hear(group("g", change("MODIFIED", at(21, 2)))) == [
        ("MODIFIED", "task-1", 11),
        ("MODIFIED", "task-2", 21),
    ]
    assert line.token == "g"


def test_half_a_group_is_forgotten_when_the_connection_is_cut(line: Line) -> None:
    line.hear(group(None, change("MODIFIED", at(11))))
    line.cut()
    assert line.token == "s"
    assert line.hear(started(resumed=True), heartbeat("h")) == []
    assert line.watched.tasks["task-1"].progress_percentage == 10


def test_after_a_reset_only_what_differs_is_told(line: Line) -> None:
    line.cut()
    line.hear(started(), reset())
    assert len(line.watched.tasks) == 2
    assert line.watched.covered == frozenset()
    assert line.hear(*snapshot("t", at(10), at(30, 3))) == [
        ("REMOVED", "task-2", 20),
        ("ADDED", "task-3", 30),
    ]
    assert line.watched.covered == {("prod", "eu-central-1")}


def test_a_task_that_ended_while_the_gateway_restarted_is_told_to_have_ended(line: Line) -> None:
    line.cut()
    changes = line.changes(started(), reset(), *snapshot("t", task(**ENDED), task(number=2, **FAILED)))
    assert [change.has_ended for change in changes] == [True, True]
    line.cut()
    assert line.changes(started(), reset(), *snapshot("u", task(**ENDED), task(number=2, **FAILED))) == []


def test_a_task_that_began_and_ended_in_an_interruption_has_ended(line: Line) -> None:
    line.cut()
    changes = line.changes(started(), reset(), *snapshot("t", at(10), at(20, 2), task(number=3, **ENDED)))
    assert [(told(change), change.has_ended) for change in changes] == [(("ADDED", "task-3", 100), True)]


def test_what_had_ended_before_the_watch_began_is_no_news() -> None:
    line = Line()
    (change,) = line.changes(started(), *snapshot("s", task(**ENDED)))
    assert not change.has_ended


def test_an_ended_task_is_never_shown_unfinished_again(line: Line) -> None:
    line.hear(group("g", change("MODIFIED", task(**ENDED))))
    assert line.hear(group("h", change("MODIFIED", at(50)))) == []
    line.cut()
    assert line.hear(started(), reset(), *snapshot("t", at(50), at(5, 2))) == []
    assert line.watched.tasks["task-1"].progress_percentage == 100
    assert line.watched.tasks["task-2"].progress_percentage == 20


def test_a_task_removed_after_its_end_does_not_come_back_unfinished(line: Line) -> None:
    line.hear(group("g", change("REMOVED", task(**ENDED), "NO_MATCH")))
    assert line.hear(group("h", change("ADDED", at(50)))) == []
    (back,) = line.changes(group("i", change("ADDED", task(**ENDED))))
    assert not back.has_ended


def test_a_task_that_ended_out_of_the_filters_sight_has_ended(line: Line) -> None:
    (gone,) = line.changes(group("g", change("REMOVED", task(**ENDED), "NO_MATCH")))
    assert gone.has_ended
    assert gone.removal_reason == pb.TaskChange.REMOVAL_REASON_NO_MATCH


def test_a_new_gateways_estimates_are_no_change(line: Line) -> None:
    paced = at(10)
    paced.pace.percent_per_second = 2.0
    assert line.hear(group("g", change("MODIFIED", paced))) == [("MODIFIED", "task-1", 10)]
    line.cut()
    assert line.hear(started(), reset(), *snapshot("t", at(10), at(20, 2))) == []


def test_a_reset_of_one_target_leaves_the_others(line: Line) -> None:
    there = at(5, 9, region="us-east-1")
    line.hear(started("eu-central-1", "us-east-1", resumed=True), *snapshot("t", there, region="us-east-1"))
    assert line.watched.is_caught_up
    line.hear(reset("us-east-1"))
    assert line.watched.covered == {("prod", "eu-central-1")}
    assert line.hear(group("g", change("MODIFIED", at(12)))) == [("MODIFIED", "task-1", 12)]
    assert line.hear(*snapshot("u", region="us-east-1")) == [("REMOVED", "task-9", 5)]


def test_a_target_that_went_in_an_interruption_is_taken_back(line: Line) -> None:
    line.cut()
    line.hear(started("us-east-1"), reset(), *snapshot("t", region="us-east-1"))
    changes = line.changes(heartbeat("h"))
    assert [told(change) for change in changes] == [("REMOVED", "task-1", 10), ("REMOVED", "task-2", 20)]
    assert changes[0].removal_reason == pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED


def test_a_discovery_that_failed_takes_nothing_back(line: Line) -> None:
    line.cut()
    down = stale("", status(grpc.StatusCode.UNAVAILABLE, "no STS"))
    assert line.hear(started("us-east-1"), reset(), down, heartbeat("h")) == []
    assert len(line.watched.tasks) == 2
    assert line.hear(*snapshot("t", at(10), at(20, 2))) == []
    assert not line.watched.stale


def test_stale_targets_are_told_with_their_error(line: Line) -> None:
    line.hear(stale("eu-central-1", status(grpc.StatusCode.UNAVAILABLE, "away", reason("AWS_UNREACHABLE"))))
    (known,) = line.watched.stale.values()
    assert (known.error.reason, known.read_time) == ("AWS_UNREACHABLE", None)
    line.hear(stale("eu-central-1", None))
    assert not line.watched.stale


def test_events_of_a_later_contract_are_ignored(line: Line) -> None:
    assert line.hear(Event(), Event(resume_token="x")) == []


def test_the_token_goes_on_with_groups_heartbeats_and_closing(line: Line) -> None:
    for message in (group("a", change("MODIFIED", at(11))), heartbeat("b"), complete("c"), closing("d")):
        line.hear(message)
        assert line.token == message.resume_token


def test_a_heartbeat_within_a_group_does_not_skip_it(line: Line) -> None:
    line.hear(group(None, change("MODIFIED", at(11))), heartbeat("h"))
    assert line.token == "s"


def test_pauses_double_up_to_a_limit_and_start_anew_after_a_steady_stream(line: Line) -> None:
    assert [line.cut() for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    line.hear(started(resumed=True))
    line.now += 9.0
    assert line.cut() == 8.0
    line.hear(started(resumed=True))
    line.now += 10.0
    assert line.cut() == 1.0


def test_pauses_are_shortened_at_random() -> None:
    pauses = {Backoff(first=1.0).pause() for _ in range(20)}
    assert len(pauses) > 1
    assert all(0.5 <= pause <= 1.0 for pause in pauses)


def test_a_pause_is_not_shorter_than_the_gateway_asks(line: Line) -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=40))
    many = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "many", reason("TOO_MANY_STREAMS"), retry)
    assert line.cut(from_status(many)) == 41.0


def test_silence_is_three_heartbeats(line: Line) -> None:
    assert line.watched.silence == 30.0
    line.cut()
    assert line.watched.silence == OPENING_SECONDS


@pytest.mark.parametrize(
    "passing",
    [
        error(grpc.StatusCode.UNAVAILABLE),
        error(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        error(grpc.StatusCode.CANCELLED),
        error(grpc.StatusCode.DEADLINE_EXCEEDED),
        error(grpc.StatusCode.INTERNAL),
        error(grpc.StatusCode.UNKNOWN),
        error(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    ],
    ids=str,
)
def test_what_passes_is_tried_again_with_the_token(line: Line, passing: Error) -> None:
    assert line.cut(passing) == 1.0
    assert line.token == "s"


@pytest.mark.parametrize(
    "lasting",
    [
        error(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        error(grpc.StatusCode.PERMISSION_DENIED, "NO_TARGETS"),
        error(grpc.StatusCode.NOT_FOUND, "UNKNOWN_ACCOUNT"),
        error(grpc.StatusCode.UNAUTHENTICATED),
        error(grpc.StatusCode.UNIMPLEMENTED),
        error(grpc.StatusCode.FAILED_PRECONDITION),
        error(grpc.StatusCode.INTERNAL, "INTERNAL"),
        error(grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=str,
)
def test_what_stays_is_raised(line: Line, lasting: Error) -> None:
    with pytest.raises(type(lasting)):
        line.cut(lasting)


@pytest.mark.parametrize(
    "refused",
    [
        error(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"),
        error(grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"),
    ],
    ids=str,
)
def test_a_token_that_means_nothing_any_more_is_dropped_and_the_state_kept(
    line: Line, refused: Error
) -> None:
    line.cut(refused)
    assert line.token == ""
    assert line.hear(started(), *snapshot("t", at(10), at(25, 2))) == [("MODIFIED", "task-2", 25)]
    line.cut()
    line.watched = Watched(pb.TaskSelector())
    with pytest.raises(type(refused)):
        line.cut(refused)
