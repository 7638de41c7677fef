"""EC2's own limits, enforced by a canned EC2 in a process of its own, are never met: whoever asks for what.

Its clock runs fast, so that minutes take seconds; the gateways' refill is raised by as much.
"""

import json
import operator
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import callers
import pytest
from canned_stage import account_id, tasks

from canned.launch import Canned, canned
from canned.throttle import Call
from processes import SECONDS, Gateway, becomes, gateway

CAPACITY, REFILL = 50.0, 0.5
SPEED = 30.0
MINUTES = 4.0
CALLERS = 1000
# The SDK's clients cost more, and few are enough.
SDK_CALLERS = 24
OURS, SDKS = account_id(1), account_id(2)
# EC2's seconds for which a supervisor waits after each crash: Kubernetes' first ones.
BACKOFF = (0.0, 10.0, 20.0, 40.0)


@pytest.fixture
def ec2() -> Iterator[Canned]:
    with canned() as running:
        running.post(
            *(
                {"account": account, "region": region, "tasks": found}
                for account in (OURS, SDKS)
                for region, found in zip(callers.REGIONS, worlds(), strict=True)
            )
        )
        running.limit(capacity=CAPACITY, refill=REFILL, speed=SPEED)
        yield running


def worlds() -> Sequence[list[dict[str, Any]]]:
    """Three pages with unfinished tasks down to the last, of which one is hidden by a newer one; 50; none."""
    deep = tasks(450)
    for place in (0, 150, 320, 440):
        deep[place] |= {"StoreTaskState": "InProgress", "ProgressPercentage": 10}
    deep[10]["AmiId"] = deep[320]["AmiId"]
    return deep, tasks(50), []


@contextmanager
def calling(whom: str, count: int, *where: str, environment: dict[str, str]) -> Iterator[Any]:
    """Callers in a process of their own; what they were told, when the context has ended."""
    told: dict[str, dict[str, int]] = {}
    command = [sys.executable, callers.__file__, whom, str(count), *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield told
            out, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
            told.update(json.loads(out))
        finally:
            process.kill()


@contextmanager
def one_of_two(ec2: Canned, socket: Path, key: str) -> Iterator[Gateway]:
    """A gateway that may use half of what there is, signing with this access key."""
    regions = ",".join(f'"{region}"' for region in callers.REGIONS)
    environment = ec2.environment(OURS) | {
        "AWS_ACCESS_KEY_ID": key,
        "IMAGETASKS_ACCOUNTS": f'[{{"name": "main", "regions": [{regions}]}}]',
        "IMAGETASKS_BUDGET__REFILL": str(REFILL * SPEED),
        "IMAGETASKS_BUDGET__SHARE": "0.5",
        # What is remembered for a while is forgotten as much sooner.
        "IMAGETASKS_DEFAULT_MAX_AGE": str(5.0 / SPEED),
        "IMAGETASKS_REMEMBER_LOOKUPS_FOR": str(60.0 / SPEED),
        "IMAGETASKS_FULL_READ_EVERY": str(600.0 / SPEED),
        "IMAGETASKS_LOG_LEVEL": "info",
    }
    with gateway("--listen", f"unix:{socket}", environment=environment) as running:
        yield running


def crash_again_and_again(ec2: Canned, socket: Path, key: str) -> None:
    """Kill a gateway when it has asked each target, and start it again as a supervisor does."""
    for wait in BACKOFF:
        enough = [number + 1 for number in asked(ec2, key)]
        with one_of_two(ec2, socket, key) as running:
            assert becomes(lambda enough=enough: all(map(operator.ge, asked(ec2, key), enough)))
            running.process.kill()
        time.sleep(wait / SPEED)


def asked(ec2: Canned, key: str) -> list[int]:
    """How many calls this key has signed, of each target."""
    calls = ec2.calls()
    return [sum(call.key == key for call in calls.get((OURS, region), ())) for region in callers.REGIONS]


def most_above_the_law(calls: Sequence[Call]) -> float:
    """Over all windows: the most by which calls exceed capacity + refill x window."""
    worst, least = -CAPACITY, float("inf")
    for number, call in enumerate(calls):
        # Calls first to last in a window are at most capacity + refill x (last - first).
        least = min(least, number - REFILL * call.at)
        worst = max(worst, number + 1 - REFILL * call.at - least - CAPACITY)
    return worst


def test_a_thousand_callers_two_gateways_and_a_crash_loop_are_never_throttled_and_the_sdk_is(
    ec2: Canned, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    keys = f"AKIA{OURS}", f"ASIA{OURS}"
    with ExitStack() as gateways:
        gateways.enter_context(one_of_two(ec2, first, keys[0]))
        with ExitStack() as asking:
            ours, theirs = ec2.environment(OURS), ec2.environment(SDKS)
            where = (f"unix:{first}", f"unix:{second}")
            told = asking.enter_context(calling("gateway", CALLERS, *where, environment=ours))
            asking.enter_context(calling("boto3", SDK_CALLERS, ec2.endpoint, environment=theirs))
            crash_again_and_again(ec2, second, keys[1])
            gateways.enter_context(one_of_two(ec2, second, keys[1]))
            assert becomes(lambda: minutes(ec2) >= MINUTES)

    calls = ec2.calls()
    for of_one in (calls[OURS, region] for region in callers.REGIONS):
        assert not any(call.throttled for call in of_one)
        assert most_above_the_law(of_one) <= 0
    # Both asked all the time, one of them again after each crash.
    for key in keys:
        assert min(asked(ec2, key)) > len(BACKOFF)
    assert any(call.throttled for region in callers.REGIONS for call in calls[SDKS, region])

    assert set(told) == set(callers.KINDS)
    for kind, outcomes in told.items():
        assert not [each for each in outcomes if "AWS_" in each or "INTERNAL" in each], (kind, outcomes)
        # While a gateway is gone.
        assert set(outcomes) - {"UNAVAILABLE"}, kind


def minutes(ec2: Canned) -> float:
    """How long our account's targets have been asked by now, on EC2's clock."""
    times = [call.at for (account, _), calls in ec2.calls().items() if account == OURS for call in calls]
    return (max(times) - min(times)) / 60
