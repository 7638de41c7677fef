"""`imagetasks watch`: tasks as they progress."""

import argparse
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NoReturn, Protocol

from imagetasks import cli
from imagetasks.blocking import Client
from imagetasks.cli import options
from imagetasks.cli.commands import Commands
from imagetasks.cli.text import printable, to_dict
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import BlockingWatch
from imagetasks.watching import Change, Place, Stale, has_ended

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

# Seconds. That no gateway is there, or that the caller may not, is said at once and not tried again.
_FIRST_QUESTION_SECONDS = 10.0
_TERMINATED = 128 + signal.SIGTERM
_STATES = ("Completed", "Failed")


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = options.parser("watch", _DESCRIPTION, _EPILOG)
    options.add_tasks(parser)
    how = parser.add_argument_group("how")
    how.add_argument("--exec", type=_words, metavar="COMMAND", help="run this for each task that ends")
    how.add_argument("--until-done", action="store_true", help="end when no task is in progress")
    parser.set_defaults(timeout=0.0)
    chosen = parser.parse_args(arguments)
    if chosen.exec and _hides_ends(chosen.filters):
        parser.error("--exec: with this filter on task-state a task goes out of sight before it ends")
    signal.signal(signal.SIGTERM, _terminated)
    printer = _printer(chosen)
    with options.client(parser, chosen) as client, ExitStack() as stack:
        client.targets(
            accounts=chosen.accounts,
            regions=chosen.regions,
            timeout=chosen.timeout or _FIRST_QUESTION_SECONDS,
        )
        commands = Commands(chosen.exec, printer.tell) if chosen.exec else None
        if commands is not None:
            stack.callback(commands.finish)
        done = _watch(client, chosen, printer, commands)
    if not done:
        raise options.failure(f"tasks are still in progress after {chosen.timeout:g} s")
    return cli.INCOMPLETE if commands is not None and commands.failed else cli.OK


def _watch(
    client: Client, chosen: argparse.Namespace, printer: "_Printer", commands: Commands | None
) -> bool:
    """Prints until there is no more; whether that is what was asked for."""
    with (
        client.watch(
            image_ids=chosen.image_ids,
            filters=chosen.filters,
            accounts=chosen.accounts,
            regions=chosen.regions,
        ) as watch,
        _ended_after(chosen.timeout, watch.close),
        printer.live(),
    ):
        while (changes := watch.heard()) is not None:
            printer.show(watch, changes)
            if commands is not None:
                for change in changes:
                    if change.has_ended:
                        commands.run(change.task)
            if chosen.until_done and watch.is_caught_up and all(map(has_ended, watch.tasks.values())):
                return True
    return not chosen.until_done


@contextmanager
def _ended_after(seconds: float, close: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, close)
    timer.daemon = True
    if seconds:
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

    def live(self) -> AbstractContextManager[object]:
        from rich.live import Live  # noqa: PLC0415 - as above

        return Live(console=self._console, get_renderable=self._board.draw, refresh_per_second=4)

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
            name = "/".join(filter(None, place))
            self.tell(f"imagetasks: {name} {f'is stale: {told.error}' if told else 'is read again'}")

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
