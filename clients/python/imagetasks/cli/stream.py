"""`imagetasks stream`: rows as Regions answer."""

import json
import sys
from collections.abc import Iterable
from typing import Protocol

from imagetasks import cli
from imagetasks.blocking import Client
from imagetasks.cli import options
from imagetasks.cli.terminal import StatusLine
from imagetasks.cli.text import explain_status, instant, printable, target_name, to_dict
from imagetasks.errors import Error
from imagetasks.v1 import store_image_tasks_pb2 as pb

_DESCRIPTION = """\
Prints the store tasks of all targets (an account in a Region), each as its
target answers, newest first within a target. Targets that failed, or of which
only an older state is known, are named on stderr at the end.
"""

_EPILOG = f"""\
json:
  One object on a line: {{"task": ...}}, {{"outcome": ...}} for each target, and
  {{"summary": ...}} last, each in protobuf's JSON mapping of the contract's
  messages (lowerCamelCase names, times in UTC).

examples:
  imagetasks stream --filters Name=task-state,Values=InProgress
  imagetasks stream --accounts prod --regions eu-central-1,eu-west-1 --max-age 0
  imagetasks stream --output json | jq .task.amiId

{cli.EXIT_CODES}"""

# Seconds. Only the status line and two columns' widths depend on this question, so rows do not wait long for
# it where the Regions of an account are still being found out.
_TARGETS_TIMEOUT = 2.0


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = options.parser("stream", _DESCRIPTION, _EPILOG)
    options.add_selection(parser)
    chosen = parser.parse_args(arguments)
    status = StatusLine(sys.stderr)
    with options.client(parser, chosen) as client:
        try:
            # The gateway works on the stream while it is asked for the targets.
            with client.stream(
                image_ids=chosen.image_ids,
                filters=chosen.filters,
                accounts=chosen.accounts,
                regions=chosen.regions,
                max_age=chosen.max_age,
                forbid_stale=chosen.forbid_stale,
            ) as events:
                targets = _targets(client, chosen.accounts, chosen.regions)
                printer: _Printer = _Json() if chosen.output == "json" else _Table(targets)
                outcomes, summary = _print(events, _Awaited(targets), printer, status)
        finally:
            status.clear()
    return _conclude(outcomes, summary, on_terminal=status.enabled)


def _targets(client: Client, accounts: list[str], regions: list[str]) -> list[pb.Target]:
    """The targets that will answer; none if that cannot be told now. What is wrong, the stream tells."""
    try:
        answer = client.targets(accounts=accounts, regions=regions, timeout=_TARGETS_TIMEOUT)
    except Error:
        return []
    return [state.target for state in answer.targets]


def _print(
    events: Iterable[pb.StreamStoreImageTasksResponse],
    awaited: "_Awaited",
    printer: "_Printer",
    status: StatusLine,
) -> tuple[list[pb.TargetOutcome], pb.StreamStoreImageTasksResponse.Summary]:
    """Prints everything but the targets' troubles, and returns these with the summary."""
    outcomes: list[pb.TargetOutcome] = []
    summary = None
    status.show(awaited)
    # To the end behind the summary: leaving before it would cancel the call.
    for event in events:
        status.clear()
        kind = event.WhichOneof("event")
        if kind == "page":
            for task in event.page.store_image_task_results:
                printer.task(task)
        elif kind == "outcome":
            printer.outcome(event.outcome)
            outcomes.append(event.outcome)
            awaited.remove(event.outcome.target)
        elif kind == "summary":
            summary = event.summary
            printer.summary(summary)
        sys.stdout.flush()
        status.show(awaited)
    status.clear()
    if summary is None:
        raise options.failure("the stream ended before its summary: the answer is incomplete")
    return outcomes, summary


class _Awaited:
    """The targets that have not answered yet, as a text for the status line."""

    def __init__(self, targets: list[pb.Target]) -> None:
        self._total = len(targets)
        # With one account its name tells nothing.
        several = len({target.account for target in targets}) > 1
        self._names = {
            (target.account, target.region): target_name(target)
            if several or not target.region
            else printable(target.region)
            for target in targets
        }

    def remove(self, target: pb.Target) -> None:
        self._names.pop((target.account, target.region), None)

    def __str__(self) -> str:
        if not self._total:
            return "waiting for targets"
        if not self._names:
            return ""
        return f"waiting for {len(self._names)} of {self._total} targets: {', '.join(self._names.values())}"


def _conclude(
    outcomes: list[pb.TargetOutcome],
    summary: pb.StreamStoreImageTasksResponse.Summary,
    *,
    on_terminal: bool,
) -> int:
    """Names the failed and the stale targets on stderr; returns the exit code."""
    failed = False
    for outcome in outcomes:
        if not outcome.HasField("status"):
            continue
        why = explain_status(outcome.status)
        if outcome.source == pb.SOURCE_STALE:
            text = f"{target_name(outcome.target)} is stale, last read {instant(outcome.read_time)}: {why}"
        else:
            failed = True
            text = f"{target_name(outcome.target)} failed: {why}"
        sys.stderr.write(f"imagetasks: {text}\n")
    if on_terminal:
        sys.stderr.write(f"{summary.task_count} tasks of {summary.target_count} targets")
        sys.stderr.write(f", {summary.stale_target_count} stale" if summary.stale_target_count else "")
        sys.stderr.write(f", {summary.failed_target_count} failed" if summary.failed_target_count else "")
        sys.stderr.write("\n")
    return cli.INCOMPLETE if failed else cli.OK


class _Printer(Protocol):
    """One of the two forms of output on stdout."""

    def task(self, task: pb.StoreImageTaskResult) -> None: ...
    def outcome(self, outcome: pb.TargetOutcome) -> None: ...
    def summary(self, summary: pb.StreamStoreImageTasksResponse.Summary) -> None: ...


class _Json:
    """One object on a line, its only member named after the kind."""

    def task(self, task: pb.StoreImageTaskResult) -> None:
        self._write("task", to_dict(task))

    def outcome(self, outcome: pb.TargetOutcome) -> None:
        self._write("outcome", to_dict(outcome))

    def summary(self, summary: pb.StreamStoreImageTasksResponse.Summary) -> None:
        self._write("summary", to_dict(summary))

    def _write(self, kind: str, value: dict[str, object]) -> None:
        sys.stdout.write(f"{json.dumps({kind: value}, ensure_ascii=False)}\n")


class _Table:
    """A header and a line per task, aligned without knowing the rows to come.

    Only names of accounts and Regions differ much in width and stand in front; the object's name, of any
    length, comes last but for the reason of a failure.
    """

    def __init__(self, targets: list[pb.Target]) -> None:
        self._account = max([7, *(len(printable(target.account)) for target in targets)])
        self._region = max([14, *(len(target.region) for target in targets)])
        self._headed = False

    def task(self, task: pb.StoreImageTaskResult) -> None:
        self._head()
        self._row(
            task.account,
            task.region,
            task.ami_id or "-",
            # EC2's own word, also for states that came after this client.
            task.ec2_store_task_state or "-",
            f"{task.progress_percentage}%" if task.HasField("progress_percentage") else "-",
            instant(task.task_start_time) if task.HasField("task_start_time") else "-",
            f"{task.bucket}/{task.s3_object_key}".strip("/") or "-",
            task.store_task_failure_reason,
        )

    def outcome(self, outcome: pb.TargetOutcome) -> None:
        """Told on stderr, at the end."""

    def summary(self, summary: pb.StreamStoreImageTasksResponse.Summary) -> None:
        """Told on stderr, at the end; an empty table has its header too."""
        del summary
        self._head()

    def _head(self) -> None:
        # Not before there is an answer: a call that failed prints nothing to stdout.
        if not self._headed:
            self._headed = True
            self._row("ACCOUNT", "REGION", "AMI", "STATE", "PROGRESS", "STARTED", "OBJECT", "REASON")

    def _row(self, *values: str) -> None:
        account, region, ami, state, progress, started, stored, reason = map(printable, values)
        sys.stdout.write(
            f"{account:<{self._account}}  {region:<{self._region}}  {ami:<21}  {state:<10}  {progress:>8}  "
            f"{started:<20}  {stored}{f'  {reason}' if reason else ''}\n",
        )
