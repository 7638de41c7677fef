"""What a gateway does when more cached describes are offered than it can answer.

One gateway process; the load comes from another process, at a fixed rate, that waits for no answer
(`offering.py`). Capacity is what h2load gets with 32 calls under way. Then: that rate, five times as much,
and half as much at once afterwards, with several values of `max_waiting_calls` and `max_waiting_seconds`.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from describe import METHOD, REGION, described
from estates import accounts, fill
from frame import Benchmark, Goal, Result, Row, medians, ratios
from h2load import COMMAND, SERVICE, calls_per_second
from measured import Measured, gateway

from canned.launch import canned

OFFERING = Path(__file__).with_name("offering.py")
SECONDS, CONNECTIONS, TASKS = 5, 20, 20
STEPS: Final = {"capacity": 1.0, "five times": 5.0, "after it": 0.5}
# Calls that may wait, and for how many seconds. The first are the defaults.
LIMITS: Final = ((10_000, 20), (1_000, 20), (200, 20))


def measure(quick: bool) -> Result:
    """Each of the limits with a gateway of its own."""
    rows: list[Row] = []
    with canned() as ec2:
        fill(ec2, TASKS, regions=[REGION])
        for waiting, seconds in LIMITS[2:] if quick else LIMITS:
            limits = {
                "max_waiting_calls": waiting,
                "max_waiting_seconds": seconds,
                # All of them come from one host.
                "default_concurrent_calls": 1000,
            }
            # Who offers has no token.
            settings = {"callers": [], "default_max_age": 1e6, "limits": limits}
            with gateway(ec2, accounts(1, ec2, [REGION]), **settings) as server:
                described(server.address)
                calls_per_second(server.address, METHOD, 5000)
                rows += of_limits(server, f"{waiting:,} may wait {seconds} s", 1 if quick else 3)
    return Result(rows)


def of_limits(server: Measured, limits: str, rounds: int) -> list[Row]:
    """What came of each step, of those that were answered and of those that were refused."""
    late: dict[str, list[float]] = defaultdict(list)
    answered: dict[str, list[float]] = defaultdict(list)
    refused: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        capacity = calls_per_second(server.address, METHOD, 10_000)
        for step, factor in STEPS.items():
            name = step.replace(" ", "_")
            ended = offer(server, capacity * factor, SECONDS)["ended"]
            of_it = sorted(ended.get("0", ()))
            late[name].append(at(of_it, 0.99))
            answered[name].append(len(of_it) / SECONDS)
            refused[name].append(at(sorted(ended.get("1", []) + ended.get("8", [])), 0.99))
    after = medians("ms", five_times=refused["five_times"])
    return [
        Row(
            f"{limits}; five times capacity: p99 of what is answered",
            "at capacity",
            Goal(most=2),
            ratios(late["five_times"], late["capacity"]),
            medians("ms", **late),
            steady=False,
        ),
        Row(
            f"{limits}; five times capacity: answered",
            "at capacity",
            Goal(),
            ratios(answered["five_times"], answered["capacity"]),
            f"{medians('calls/s', **answered)}; refused after, p99: {after}; "
            f"most memory {server.memory('VmHWM'):.0f} MiB",
        ),
    ]


def offer(server: Measured, rate: float, seconds: float) -> dict[str, Any]:
    """What `offering.py` found."""
    command = [sys.executable, OFFERING, server.address, f"{SERVICE}/{METHOD}", rate, seconds, CONNECTIONS]
    result = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    assert not found["unanswered"], found["unanswered"]
    return found


def at(times: list[float], part: float) -> float:
    """The time that this part of the calls did not exceed."""
    return times[min(len(times) - 1, int(len(times) * part))] if times else 0.0


BENCHMARK = Benchmark(
    "overload",
    "Overload",
    f"Cached describes of {TASKS} tasks, offered for {SECONDS} s at a fixed rate by a process that waits for "
    "no answer: it takes half of what there is. Nobody is refused for a quota; gRPC's queue refuses.",
    measure,
    (COMMAND,),
)
