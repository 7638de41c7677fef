"""Regions as far away as real ones: how soon the first and the last row of a cold sweep are there."""

from pathlib import Path

from estates import FASTEST, LATENCIES, REGIONS, SLOWEST, accounts, fill
from frame import Benchmark, Goal, Result, Row, medians
from measured import gateway, told

from canned.launch import canned

PEERS = str(Path(__file__).with_name("sweep_peers.py"))
BLOCKED = str(Path(__file__).with_name("blocked.py"))
# Tasks of each Region, and the pages that they are, of which each waits for the one before.
ESTATES = {50: 1, 600: 3}
# Where the goal is missed; the document tells why.
FIRST_ROW = {600: Goal(most=28, unit="ms")}
LAST_ROW = {50: Goal(most=1.45), 600: Goal(most=2.3)}


def measure(quick: bool) -> Result:
    """For each estate."""
    rows: list[Row] = []
    with canned() as ec2:
        for tasks, pages in ESTATES.items():
            fill(ec2, tasks, seconds=LATENCIES)
            found = []
            for _ in range(3 if quick else 7):
                with gateway(ec2, accounts(1, ec2)) as ours:
                    found.append(told(PEERS, "gateway", ours.address))
                    assert found[-1]["tasks"] == len(REGIONS) * tasks
            first = [each["first"] * 1000 for each in found]
            last = [each["seconds"] * 1000 for each in found]
            of = f"{len(REGIONS)} Regions of {tasks} tasks"
            turn = f"{pages} page{'s' * (pages > 1)} after each other"
            rows += [
                Row(
                    f"{of}: first row later by",
                    f"the fastest Region, {FASTEST * 1000:.0f} ms",
                    Goal(most=20, unit="ms"),
                    [each - FASTEST * 1000 for each in first],
                    medians("ms", first_row=first),
                    reached=FIRST_ROW.get(tasks),
                ),
                Row(
                    f"{of}: last row",
                    f"the slowest Region, {SLOWEST * 1000:.0f} ms a page, {turn}",
                    Goal(most=1.15),
                    [each / (SLOWEST * 1000 * pages) for each in last],
                    medians("ms", last_row=last),
                    reached=LAST_ROW.get(tasks),
                ),
            ]
        if not quick:
            environment = ec2.environment("0" * 11 + "1")
            rows.append(
                Row(
                    "longest turn of the gateway's loop meanwhile",
                    "600 tasks a Region",
                    Goal(most=50, unit="ms"),
                    told(BLOCKED, ec2.endpoint, environment=environment),
                )
            )
    return Result(rows)


BENCHMARK = Benchmark(
    "latency",
    "First and last row",
    f"Regions at {FASTEST * 1000:.0f} to {SLOWEST * 1000:.0f} ms a page. A new gateway process each time, "
    "with callers, quotas, metrics and log on; the caller is connected before time begins.",
    measure,
)
