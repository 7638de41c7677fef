"""The table of `imagetasks watch`, drawn on a terminal of a width."""

import io
from typing import Any

import grpc
from rich.console import Console
from scripted_gateway import reason, status, task
from watch_events import FAILED, Event, at, change, group, snapshot, stale, started

from imagetasks.cli.board import Board
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import Held

DENIED = status(grpc.StatusCode.PERMISSION_DENIED, "no", reason("AWS_UNAUTHORIZED_OPERATION"))


class Shown:
    """A board that shows a watch."""

    def __init__(self, *messages: Event, width: int = 100) -> None:
        self._output = io.StringIO()
        console = Console(file=self._output, width=width, height=40, force_terminal=False)
        self.board = Board(console, clock=lambda: 1_767_225_600.0)
        self._console = console
        watch = Held(lambda _: None, pb.TaskSelector())
        for message in messages:
            watch._received(message)
            self.board.update(watch, watch._taken())

    def lines(self) -> list[str]:
        self._output.seek(0)
        self._output.truncate()
        self._console.print(self.board.draw())
        return [line.rstrip() for line in self._output.getvalue().splitlines()]


def test_a_long_reason_gives_way_to_the_rest() -> None:
    failed: dict[str, Any] = FAILED | {"store_task_failure_reason": "no bucket, " * 20}
    ended = group("g", change("MODIFIED", task(number=2, **failed)))
    shown = Shown(started(), *snapshot("s", at(30), at(45, 2)), ended).lines()
    assert [len(line) <= 100 for line in shown] == [True] * 4
    assert shown[1].split() == ["ACCOUNT", "REGION", "AMI", "PROGRESS", "RATE", "DONE", "IN"]
    assert shown[2].split()[:3] == ["prod", "eu-central-1", at(30).ami_id]
    assert "Failed no bucket, no" in shown[3]
    assert shown[3].endswith("45%")


def test_what_was_never_read_is_not_called_stale() -> None:
    stale_ = stale("us-east-1", DENIED)
    stale_.target_status.read_time.FromSeconds(1_767_225_600)
    shown = Shown(started("eu-central-1", "us-east-1"), stale("eu-central-1", DENIED), stale_).lines()
    assert shown == [
        "In progress now (0 of 2 targets read, 0 tasks; Ctrl-C ends)",
        "prod/eu-central-1 cannot be read: AWS_UNAUTHORIZED_OPERATION: no",
        "prod/us-east-1 is stale, last read 2026-01-01T00:00:00Z: AWS_UNAUTHORIZED_OPERATION: no",
    ]


def test_what_stays_on_the_terminal_says_that_it_is_over() -> None:
    shown = Shown(started(), *snapshot("s"))
    assert shown.lines() == ["In progress now (1 targets, 0 tasks; Ctrl-C ends)"]
    shown.board.end()
    assert shown.lines() == ["At the end (1 targets, 0 tasks)"]
