"""Many times what a gateway can answer: it stays SERVING, refuses in its own words, and holds little.

As soon as the flood is over it answers everything again. The flood comes from a process of its own that waits
for no answer. What came of it is printed (`-s` shows it).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import imagetasks
from canned.launch import Canned, canned
from processes import ROOT, SECONDS, Gateway, free_ports, gateway

ACCOUNT, REGION, TASKS = "000000000001", "eu-one-1", 20
PATH = "/imagetasks.v1.StoreImageTaskService/DescribeStoreImageTasks"
# Several times the 4,000 or so that one core answers.
OFFERED, FLOOD_SECONDS, CONNECTIONS = 20_000, 5, 20
OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "0", "1", "4", "8"
# MiB at most beyond what it had.
MEMORY = 150.0
# Seconds after the flood until everything is answered again.
RECOVERED = 10.0


@pytest.fixture
def ec2() -> Iterator[Canned]:
    began = datetime.now(UTC) - timedelta(hours=1)
    tasks = [
        {
            "AmiId": f"ami-{number:017x}",
            "TaskStartTime": f"{began + timedelta(seconds=number):%Y-%m-%dT%H:%M:%S.000Z}",
            "Bucket": "archive",
            "S3objectKey": f"ami-{number:017x}.bin",
            "ProgressPercentage": 100,
            "StoreTaskState": "Completed",
            "StoreTaskFailureReason": "",
        }
        for number in range(TASKS)
    ]
    with canned() as running:
        running.post({"account": ACCOUNT, "region": REGION, "tasks": tasks})
        yield running


@contextlib.contextmanager
def limited(ec2: Canned, *, cache_bytes: int = 1 << 20, **limits: float) -> Iterator[tuple[Gateway, str]]:
    """A gateway with these limits, and where its health service answers alone."""
    (port,) = free_ports(1)
    environment = ec2.environment(ACCOUNT) | {
        "IMAGETASKS_ACCOUNTS": json.dumps([{"name": "main", "regions": [REGION]}]),
        "IMAGETASKS_HEALTH_LISTEN": f"127.0.0.1:{port}",
        "IMAGETASKS_LOG_LEVEL": "info",
        "IMAGETASKS_DEFAULT_MAX_AGE": "3600",
        "IMAGETASKS_ANSWER_CACHE_BYTES": str(cache_bytes),
        **{f"IMAGETASKS_LIMITS__{name.upper()}": str(value) for name, value in limits.items()},
    }
    with gateway(environment=environment) as running:
        yield running, f"127.0.0.1:{port}"


def flood(address: str, offered: int) -> Callable[[], dict[str, int]]:
    """Begins it, so many calls a second; returns what waits until it is over, and tells how they ended."""
    offering = ROOT / "benchmarks/offering.py"
    command = [sys.executable, offering, address, PATH, offered, FLOOD_SECONDS, CONNECTIONS]
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    def over() -> dict[str, int]:
        with process:
            told = json.loads(process.communicate(timeout=2 * SECONDS)[0])
        assert process.returncode == 0
        assert told["unanswered"] == 0
        ended = {status: len(times) for status, times in told["ended"].items()}
        assert sum(ended.values()) == told["offered"]
        return ended

    return over


def refusal(error: imagetasks.ResourceExhaustedError) -> str:
    """Its reason, and whether it says when to come back."""
    return f"{error.reason}, come back" if error.retry_after is not None else error.reason


def describe_until(over: Callable[[], bool], address: str) -> Counter[str]:
    """What the library's client is told beside it, and how often."""
    told: Counter[str] = Counter()
    with imagetasks.connect_blocking(address, timeout=SECONDS) as client:
        while not over():
            try:
                told[f"{len(list(client.describe()))} tasks"] += 1
            except imagetasks.ResourceExhaustedError as error:
                told[refusal(error)] += 1
            except imagetasks.UnavailableError as error:
                told[error.code.name] += 1
            time.sleep(0.02)
    return told


def healths_until(over: Callable[[], bool], address: str) -> Counter[int]:
    """What the health service says."""
    told: Counter[int] = Counter()
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while not over():
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            told[answer.status] += 1
            time.sleep(0.1)
    return told


def flooded(
    running: Gateway, health: str, offered: int = OFFERED, most: float = MEMORY
) -> tuple[dict[str, int], Counter[str]]:
    """How the flood's calls ended, and those of a client beside it. All else is the same in each flood."""
    with imagetasks.connect_blocking(running.address) as client:
        assert len(list(client.describe())) == TASKS
    before = memory(running)
    with ThreadPoolExecutor(3) as threads:
        ended = threads.submit(flood(running.address, offered))
        beside = threads.submit(describe_until, ended.done, running.address)
        healths = threads.submit(healths_until, ended.done, health)
        told, told_beside = ended.result(), beside.result()
        assert set(healths.result()) == {health_pb2.HealthCheckResponse.SERVING}
    grown = memory(running, "VmHWM") - before
    sys.stdout.write(
        f"\n{told}; beside it {dict(told_beside)}, "
        f"healthy {healths.result().total()} times; {grown:+.0f} MiB\n"
    )
    assert grown < most
    assert running.process.poll() is None
    return told, told_beside


def answers_everything(address: str, count: int) -> None:
    """So many calls. The flood has spent the caller's rate: then it comes back when it is told to."""
    began, answered = time.monotonic(), 0
    with imagetasks.connect_blocking(address) as client:
        while answered < count:
            try:
                assert len(list(client.describe())) == TASKS
            except imagetasks.ResourceExhaustedError as error:
                if error.reason != "RATE_LIMITED" or error.retry_after is None:
                    raise
                time.sleep(error.retry_after.total_seconds())
            else:
                answered += 1
    took = time.monotonic() - began
    sys.stdout.write(f"{count} describes after it in {took:.2f} s\n")
    assert took < RECOVERED


def memory(running: Gateway, what: str = "VmRSS") -> float:
    """MiB that it holds, or has held at most."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024


@pytest.mark.timeout(120)
def test_what_grpc_refuses_is_refused_at_once_and_the_rest_is_answered(ec2: Canned) -> None:
    with limited(ec2, max_waiting_calls=500) as (running, health):
        told, beside = flooded(running, health)
        assert set(told) <= {OK, CANCELLED, DEADLINE_EXCEEDED}
        assert told[OK] > 0
        assert told[CANCELLED] > told[OK]
        # Asked again by itself, it is answered at least now and then.
        assert set(beside) <= {f"{TASKS} tasks", "CANCELLED"}
        answers_everything(running.address, 100)


@pytest.mark.timeout(120)
def test_who_has_waited_too_long_is_refused_however_many_may_wait(ec2: Canned) -> None:
    # More than come in a second and a half: none is refused for their number. Each that waits holds 20 KiB.
    offered, places = 8_000, 12_000
    # Nothing is remembered: then no machine answers as many as are offered.
    limits = {"max_waiting_calls": places, "max_waiting_seconds": 1}
    with limited(ec2, cache_bytes=0, **limits) as (running, health):
        told, beside = flooded(running, health, offered, most=2 * MEMORY)
        assert set(told) <= {OK, CANCELLED}
        assert told[OK] > 0
        assert told[CANCELLED] > 0
        assert set(beside) <= {f"{TASKS} tasks", "CANCELLED"}
        answers_everything(running.address, 100)


@pytest.mark.timeout(120)
def test_what_the_gateway_refuses_says_when_to_come_back(ec2: Canned) -> None:
    with limited(ec2, default_calls_per_second=50, max_waiting_calls=500) as (running, health):
        told, beside = flooded(running, health)
        assert set(told) <= {OK, RESOURCE_EXHAUSTED, CANCELLED, DEADLINE_EXCEEDED}
        assert told[OK] > 0
        assert told[RESOURCE_EXHAUSTED] > 0
        assert set(beside) <= {f"{TASKS} tasks", "CANCELLED", "RATE_LIMITED, come back"}
        answers_everything(running.address, 20)


@pytest.mark.timeout(60)
def test_above_the_calls_under_way_every_refusal_says_when_to_come_back(ec2: Canned) -> None:
    places, count = 10, 100
    with limited(ec2, max_concurrent_calls=places, default_concurrent_calls=places + 1) as (running, _):
        ec2.fail({"account": ACCOUNT, "region": REGION, "fault": "hang"})

        def ask(client: imagetasks.BlockingClient) -> str:
            try:
                return f"{len(list(client.describe(max_age=0, timeout=3)))} tasks"
            except imagetasks.ResourceExhaustedError as error:
                return refusal(error)
            except imagetasks.Error as error:
                return type(error).__name__

        with imagetasks.connect_blocking(running.address) as client, ThreadPoolExecutor(count) as threads:
            told = Counter(threads.map(lambda _: ask(client), range(count)))
            sys.stdout.write(f"\n{dict(told)}\n")
            # Those that had a place were not answered either: EC2 hangs, and the budget is small.
            assert told.pop("OVERLOADED, come back") == count - places
            assert set(told) <= {"DeadlineExceededError", "BUDGET_EXHAUSTED, come back"}
            ec2.recover()
            assert ask(client) == f"{TASKS} tasks"
