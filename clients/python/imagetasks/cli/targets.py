"""`imagetasks targets`: what can be asked, and how the gateway stands with it."""

import sys
import time

from imagetasks import cli
from imagetasks.cli import options
from imagetasks.cli.text import explain_status, printable, to_json
from imagetasks.v1 import store_image_tasks_pb2 as pb

_DESCRIPTION = """\
Lists the accounts and Regions that this caller may ask, each with the age of
the gateway's newest read of EC2, the tasks known of it, what is left of EC2's
allowance, and why the newest read failed. Asks EC2 for no tasks.
"""

_EPILOG = f"""\
json:
  The contract's ListTargetsResponse in protobuf's JSON mapping
  (lowerCamelCase names, times in UTC).

examples:
  imagetasks targets --regions eu-central-1
  imagetasks targets --output json | jq -r '.targets[].target.region'

{cli.EXIT_CODES}"""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = options.parser("targets", _DESCRIPTION, _EPILOG)
    chosen = parser.parse_args(arguments)
    with options.client(parser, chosen) as client:
        answer = client.targets(accounts=chosen.accounts, regions=chosen.regions)
    if chosen.output == "json":
        sys.stdout.write(f"{to_json(answer, indent=2)}\n")
    else:
        _print_table(answer)
    return cli.OK


def _print_table(answer: pb.ListTargetsResponse) -> None:
    now = time.time()
    rows = [("ACCOUNT", "ACCOUNT ID", "REGION", "LAST READ", "TASKS", "IN PROGRESS", "BUDGET", "LAST ERROR")]
    rows += [
        (
            printable(state.target.account),
            state.target.account_id or "-",
            state.target.region or "-",
            _age(state, now),
            str(state.task_count),
            str(state.in_progress_count),
            _budget(state),
            explain_status(state.last_error) if state.HasField("last_error") else "",
        )
        for state in answer.targets
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:-1], widths[3:], strict=False)]
        sys.stdout.write(f"{'  '.join([*names, *numbers, row[-1]]).rstrip()}\n")


def _age(state: pb.TargetState, now: float) -> str:
    if not state.HasField("read_time"):
        return "never"
    # The gateway's clock may be a little ahead of this machine's.
    seconds = max(0, round(now - state.read_time.ToNanoseconds() / 1e9))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _budget(state: pb.TargetState) -> str:
    if not state.HasField("budget"):
        return "-"
    budget = state.budget
    return f"{budget.available:.1f}/{budget.capacity:g} +{budget.refill_per_second:g}/s"
