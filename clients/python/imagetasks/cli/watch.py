"""`imagetasks watch`: tasks as they progress."""

import argparse
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, NoReturn, Protocol

from imagetasks import cli
from imagetasks.blocking import Client, Stream
from imagetasks.cli import options
from imagetasks.cli.commands import Commands
from imagetasks.cli.goal import Goal
from imagetasks.cli.hindrances import Hindrances
from imagetasks.cli.text import explain_stale, place_name, printable, to_dict
from imagetasks.requests import DEFAULT_TIMEOUT
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import BlockingWatch
from imagetasks.watching import Change, Place, Stale

_DESCRIPTION = """\
Shows the store tasks of all targets (an account in a Region) as they progress,
until Ctrl-C: on a terminal a table, elsewhere a line for each change. It
survives restarts of the gateway; what happened meanwhile is told then.
"""

_EPILOG = f"""\
json:
  One object on a line: {{"change": ...}} for each, {{"covered": ...}} when all that
  is known of a target has been printed, {{"status": ...}} when a target cannot
  be read or can again, each in protobuf's JSON mapping of the contract's
  messages (lowerCamelCase names, times in UTC).

the end:
  --until-done ends when every task that is shown has ended, as EC2 was read
  after the command began; at once if there are none. With --image-ids each of
  these AMIs must have a task first: one that is about to be created is waited
  for. A target that cannot be read may have a task in progress, so it is waited
  for too, and stderr says so; but not if it stays so until somebody changes
  something, as without a permission: then the exit code is 1.

commands:
  --exec runs once for each task that ends while it is watched, or ended while
  the gateway was away; four at a time, all of them before the end. In the
  environment: IMAGETASKS_TASK_ID, IMAGETASKS_ACCOUNT, IMAGETASKS_REGION,
  IMAGETASKS_AMI_ID, IMAGETASKS_BUCKET, IMAGETASKS_OBJECT_KEY, IMAGETASKS_STATE,
  IMAGETASKS_FAILURE_REASON. No shell reads it; write sh -c '...' for one. What
  it prints goes to stderr.

examples:
  imagetasks watch --accounts prod
  imagetasks watch --until-done --image-ids ami-1234567890abcdef0
  imagetasks watch --exec 'sh -c "echo $IMAGETASKS_AMI_ID $IMAGETASKS_STATE"'

{cli.EXIT_CODES}"""

# Seconds. That no gateway is there, or that the caller may not, is said at once and not tried again. A
# gateway that has just started may take half of it to find out its targets.
_FIRST_QUESTION_SECONDS = 20.0
_TERMINATED = 128 + signal.SIGTERM
_STATES = ("Completed", "Failed")


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = options.parser("watch", _DESCRIPTION, _EPILOG)
    options.add_tasks(parser)
    how = parser.add_argument_group("how")
    how.add_argument("--exec", type=_words, metavar="COMMAND", help="run this for each task that ends")
    how.add_argument("--until-done", action="store_true", help="end when every task has ended")
    parser.set_defaults(timeout=0.0)
    chosen = parser.parse_args(arguments)
    if chosen.exec and _hides_ends(chosen.filters):
        parser.error("--exec: with this filter on task-state a task goes out of sight before it ends")
    signal.signal(signal.SIGTERM, _terminated)
    began = time.monotonic()
    until = began + (chosen.timeout or math.inf)
    printer = _printer(chosen)
    with options.client(parser, chosen) as client, ExitStack() as stack:
        client.targets(
            accounts=chosen.accounts,
            regions=chosen.regions,
            timeout=min(_FIRST_QUESTION_SECONDS, _left(until)),
        )
        commands = Commands(chosen.exec, printer.tell) if chosen.exec else None
        if commands is not None:
            stack.callback(commands.finish)
        goal = _goal(client, chosen, began, until) if chosen.until_done else None
        done = _watch(client.watch(**_selection(chosen)), until, printer, commands, goal)
    if goal is not None and not done:
        raise options.failure(f"{goal.reason} after {chosen.timeout:g} s")
    refused = {} if goal is None else goal.refused
    for name, why in refused.items():
        sys.stderr.write(f"imagetasks: not waited for: {name}: {why}\n")
    failed = refused or (commands is not None and commands.failed)
    return cli.INCOMPLETE if failed else cli.OK


def _goal(client: Client, chosen: argparse.Namespace, began: float, until: float) -> Goal:
    def ask() -> Stream:
        return client.stream(
            **_selection(chosen),
            max_age=time.monotonic() - began,
            forbid_stale=True,
            timeout=min(DEFAULT_TIMEOUT, _left(until)),
        )

    return Goal(chosen.image_ids, ask)


def _watch(
    watch: BlockingWatch,
    until: float,
    printer: "_Printer",
    commands: Commands | None,
    goal: Goal | None,
) -> bool:
    """Prints until the goal is reached or the time is over; whether it was reached."""
    hindrances = Hindrances(lambda line: printer.tell(f"imagetasks: {line}"))
    with watch, _ended_at(until, watch.close), printer.live():
        while (changes := watch.heard()) is not None:
            printer.show(watch, changes)
            if commands is not None:
                for change in changes:
                    if change.has_ended:
                        commands.run(change.task)
            if goal is not None:
                if goal.is_reached(watch, changes):
                    return True
                hindrances.are(goal.hindrances)
    return False


def _selection(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "image_ids": chosen.image_ids,
        "filters": chosen.filters,
        "accounts": chosen.accounts,
        "regions": chosen.regions,
    }


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


@contextmanager
def _ended_at(until: float, close: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(min(_left(until), threading.TIMEOUT_MAX), close)
    timer.daemon = True
    if until < math.inf:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(_TERMINATED)


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not words:
        raise argparse.ArgumentTypeError("no command")
    return words


def _hides_ends(filters: Sequence[pb.Filter]) -> bool:
    """Whether a task may be seen in progress and not at its end, if the gateway restarts between."""

    def matches(state: str) -> bool:
        patterns = [each.values for each in filters if each.name == "task-state"]
        return all(any(fnmatchcase(state, value) for value in values) for values in patterns)

    return matches("InProgress") and not all(map(matches, _STATES))


class _Printer(Protocol):
    """One of the forms of output."""

    def live(self) -> AbstractContextManager[object]: ...
    def show(self, watch: BlockingWatch, changes: list[Change]) -> None: ...
    def tell(self, line: str) -> None: ...


def _printer(chosen: argparse.Namespace) -> _Printer:
    if chosen.output == "json":
        return _Json()
    from rich.console import Console  # noqa: PLC0415 - slow to import, and json does without

    console = Console(markup=False, highlight=False, emoji=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return _Live(console)
    return _Lines()


class _Live:
    """A table that is redrawn; whatever else is to be said stands above it."""

    def __init__(self, console: "Console") -> None:  # type: ignore[name-defined]  # noqa: F821
        from imagetasks.cli.board import Board  # noqa: PLC0415 - rich comes with it

        self._console = console
        self._board = Board(console)

    @contextmanager
    def live(self) -> Iterator[None]:
        from rich.live import Live  # noqa: PLC0415 - as above

        with Live(console=self._console, get_renderable=self._board.draw, refresh_per_second=4):
            try:
                yield
            finally:
                self._board.end()

    def show(self, watch: BlockingWatch, changes: list[Change]) -> None:
        self._board.update(watch, changes)

    def tell(self, line: str) -> None:
        self._console.print(printable(line))


class _News:
    """What a watch's state says that its changes do not."""

    def __init__(self) -> None:
        self._stale: dict[Place, Stale] = {}
        self._covered: frozenset[Place] = frozenset()
        self._live = False

    def stale(self, watch: BlockingWatch) -> Iterator[tuple[Place, Stale | None]]:
        """Targets that cannot be read any more, and those that can again."""
        if not watch.is_live:
            return
        before, self._stale = self._stale, dict(watch.stale)
        for place, told in self._stale.items():
            if place not in before or before[place].error.reason != told.error.reason:
                yield place, told
        for place in before.keys() - self._stale.keys():
            yield place, None

    def covered(self, watch: BlockingWatch) -> list[Place]:
        """Targets of which all that is known has been told since the last time."""
        before, self._covered = self._covered, watch.covered
        return sorted(self._covered - before)

    def is_cut(self, watch: BlockingWatch) -> bool:
        """The connection has just been lost."""
        before, self._live = self._live, watch.is_live
        return before and not self._live


class _Lines:
    """A line for each change on stdout, and for each trouble on stderr."""

    def __init__(self) -> None:
        self._news = _News()
        self._headed = False

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, watch: BlockingWatch, changes: list[Change]) -> None:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if not self._headed:
            self._headed = True
            self._row("TIME", "CHANGE", "ACCOUNT", "REGION", "AMI", "STATE", "PROGRESS", "OBJECT", "REASON")
        for change in changes:
            task = change.task
            self._row(
                now,
                _word(change),
                task.account,
                task.region,
                task.ami_id or "-",
                task.ec2_store_task_state or "-",
                f"{task.progress_percentage}%" if task.HasField("progress_percentage") else "-",
                f"{task.bucket}/{task.s3_object_key}".strip("/") or "-",
                task.store_task_failure_reason,
            )
        sys.stdout.flush()
        if self._news.is_cut(watch):
            why = f": {watch.last_error}" if watch.last_error else ""
            self.tell(f"imagetasks: the connection is lost, and tried again{why}")
        for place, told in self._news.stale(watch):
            news = explain_stale(told) if told else f"{place_name(place)} can be read now"
            self.tell(f"imagetasks: {news}")

    def tell(self, line: str) -> None:
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()

    def _row(self, *values: str) -> None:
        time, change, account, region, ami, state, progress, stored, reason = map(printable, values)
        sys.stdout.write(
            f"{time:<20}  {change:<8}  {account:<12}  {region:<14}  {ami:<21}  {state:<10}  {progress:>8}  "
            f"{stored}{f'  {reason}' if reason else ''}\n"
        )


def _word(change: Change) -> str:
    if change.has_ended:
        return "ended"
    return pb.TaskChange.Type.Name(change.type).removeprefix("TYPE_").lower()


class _Json:
    """One object on a line, its only member named after the kind."""

    def __init__(self) -> None:
        self._news = _News()

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, watch: BlockingWatch, changes: list[Change]) -> None:
        for change in changes:
            told = pb.TaskChange(type=change.type, removal_reason=change.removal_reason, task=change.task)
            self._write("change", to_dict(told))
        if covered := self._news.covered(watch):
            targets = [pb.Target(account=account, region=region) for account, region in covered]
            self._write("covered", to_dict(pb.WatchStoreImageTasksResponse.SnapshotComplete(targets=targets)))
        for (account, region), stale in self._news.stale(watch):
            target = pb.Target(account=account, region=region)
            status = pb.WatchStoreImageTasksResponse.TargetStatus(
                target=target, status=stale.error.status if stale else None
            )
            self._write("status", to_dict(status))
        sys.stdout.flush()

    def tell(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def _write(self, kind: str, value: dict[str, object]) -> None:
        sys.stdout.write(f"{json.dumps({kind: value}, ensure_ascii=False)}\n")
