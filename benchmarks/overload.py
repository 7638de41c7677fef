"""What a gateway does when more cached describes are offered than it can answer.

    python benchmarks/overload.py

One gateway process; the load comes from another process, at a fixed rate, that waits for no answer
(`offering.py`). On two cores the load takes half of what there is. Capacity is what h2load gets with 32 calls
under way. Then: that rate, five times as much, and half as much at once afterwards, each with
several values of `limits.max_waiting_calls` and `limits.max_waiting_seconds`. Compare within one run.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from describe import METHOD, REGION, described
from estates import accounts, fill
from h2load import SERVICE, calls_per_second
from measured import Measured, gateway

from canned.launch import canned

OFFERING = Path(__file__).with_name("offering.py")
SECONDS, CONNECTIONS, TASKS = 5, 20, 20
STEPS = {"capacity": 1.0, "5 times": 5.0, "after it": 0.5}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiting", type=int, nargs="+", default=[200, 1000, 10_000], help="values to try")
    parser.add_argument("--seconds", type=int, nargs="+", default=[20, 2], help="values to try with each")
    print(
        f"{'waiting':>8} {'for':>5} {'offered':>16} {'answered':>10} {'p50':>9} {'p99':>9} "
        f"{'refused':>9} {'p99':>9} {'too late':>9} {'memory':>9}"
    )
    arguments = parser.parse_args()
    with canned() as ec2:
        fill(ec2, TASKS, regions=[REGION])
        for waiting, seconds in itertools.product(arguments.waiting, arguments.seconds):
            limits = {"max_waiting_calls": waiting, "max_waiting_seconds": seconds}
            # Who offers has no token.
            settings = {"callers": [], "default_max_age": 1e6, "limits": limits}
            with gateway(ec2, accounts(1, ec2, [REGION]), **settings) as server:
                described(server.address)
                calls_per_second(server.address, METHOD, 5000)
                capacity = calls_per_second(server.address, METHOD, 10_000)
                for name, factor in STEPS.items():
                    row(
                        f"{waiting:>8} {seconds:>3} s",
                        f"{name:>8} {capacity * factor:>5.0f}/s",
                        server,
                        capacity * factor,
                    )


def row(limits: str, name: str, server: Measured, rate: float) -> None:
    """Offer, and print what came of it."""
    found = offer(server, rate, SECONDS)
    ended = found["ended"]
    answered = sorted(ended.get("0", ()))
    refused = sorted(ended.get("1", []) + ended.get("8", []))
    print(
        f"{limits} {name} {len(answered) / SECONDS:>8.0f}/s {at(answered, 0.5):>6.0f} ms "
        f"{at(answered, 0.99):>6.0f} ms {len(refused) / SECONDS:>7.0f}/s {at(refused, 0.99):>6.0f} ms "
        f"{len(ended.get('4', ())):>9} {server.memory():>5.0f} MiB",
        flush=True,
    )


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


if __name__ == "__main__":
    main()
