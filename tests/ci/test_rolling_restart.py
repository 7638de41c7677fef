"""Two gateways on one EC2 are restarted in turn, again and again, and nobody who uses both notices.

What that means is asserted here. Every call that a gateway has taken ends well, and so does every call of the
library, which tries again what could not connect. Every watch goes on, holds in the end what EC2 has, and
told its application of each task that ended once. Every wait is answered. EC2 throttled nobody.
"""

import json
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest

import rolling_clients
from canned.launch import Canned, canned
from processes import SECONDS, Gateway, becomes, free_ports, gateway

ACCOUNT = "000000000001"
REGIONS = ("eu-one-1", "eu-two-1")
CAPACITY, REFILL = 50.0, 0.5
# EC2's clock runs so much faster, so that minutes take seconds; the gateways' refill is raised by as much.
SPEED = 30.0
# Of each gateway.
RESTARTS = 2
# Tasks of a Region when it begins, most of them unfinished; and how many more come along.
TASKS, UNFINISHED, MORE = 60, 40, 60
# Seconds between two steps of all tasks.
STEP = 0.5
# Calls that a gateway has taken, and steps of the tasks, before the other one is stopped.
CALLS, STEPS = 50, 5


class World:
    """Tasks of one Region that come along and end, step by step."""

    def __init__(self, region: str, chance: random.Random) -> None:
        self.region = region
        self._chance = chance
        self._began = datetime.now(UTC) - timedelta(hours=2)
        self.tasks: list[dict[str, Any]] = []
        for number in range(TASKS):
            self._add(ended=number < TASKS - UNFINISHED)

    def step(self, *, last: bool = False) -> None:
        """Some come along, some end, perhaps one begins. The last: all end."""
        for task in self.tasks:
            if task["StoreTaskState"] == "InProgress" and (last or self._chance.random() < 0.4):
                task["ProgressPercentage"] += self._chance.randint(5, 20)
                if last or task["ProgressPercentage"] >= 100:
                    self._end(task)
        if not last and len(self.tasks) < TASKS + MORE and self._chance.random() < 0.4:
            self._add(ended=False)

    @property
    def ended(self) -> int:
        """Tasks that have ended."""
        return sum(task["StoreTaskState"] != "InProgress" for task in self.tasks)

    def _add(self, *, ended: bool) -> None:
        number = len(self.tasks)
        ami_id = f"ami-{self._chance.getrandbits(64):017x}"
        task = {
            "AmiId": ami_id,
            "TaskStartTime": f"{self._began + timedelta(seconds=number):%Y-%m-%dT%H:%M:%S.000Z}",
            "Bucket": "archive",
            "S3objectKey": f"{ami_id}.bin",
            "ProgressPercentage": self._chance.randint(0, 80),
            "StoreTaskState": "InProgress",
            "StoreTaskFailureReason": "",
        }
        if ended:
            self._end(task)
        self.tasks.append(task)

    def _end(self, task: dict[str, Any]) -> None:
        failed = self._chance.random() < 0.3
        task["StoreTaskState"] = "Failed" if failed else "Completed"
        task["ProgressPercentage"] = min(99, task["ProgressPercentage"]) if failed else 100
        task["StoreTaskFailureReason"] = "The bucket has gone." if failed else ""


class Steps:
    """Moves the worlds on, in a thread, as long as the context lasts.

    Attributes:
        taken: How many steps.
    """

    def __init__(self, ec2: Canned, worlds: Sequence[World]) -> None:
        self.taken = 0
        self._ec2 = ec2
        self._worlds = worlds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def wait_for(self, taken: int) -> None:
        """Return when so many have been taken."""
        assert becomes(lambda: self.taken >= taken)

    def _run(self) -> None:
        while not self._over.wait(STEP):
            for world in self._worlds:
                world.step()
            post(self._ec2, self._worlds)
            self.taken += 1


class Replica:
    """One of the gateways: always on the same port, with half of what EC2 allows."""

    def __init__(self, ec2: Canned, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._environment = ec2.environment(ACCOUNT) | {
            "IMAGETASKS_ACCOUNTS": json.dumps([{"name": "main", "regions": REGIONS}]),
            "IMAGETASKS_BUDGET__REFILL": str(REFILL * SPEED),
            "IMAGETASKS_BUDGET__SHARE": "0.5",
            "IMAGETASKS_DEFAULT_MAX_AGE": str(5.0 / SPEED),
            "IMAGETASKS_POLL_INTERVAL": str(5.0 / SPEED),
            "IMAGETASKS_FULL_READ_EVERY": str(600.0 / SPEED),
            # On a busy machine 500 goodbyes can take more than the usual ten seconds.
            "IMAGETASKS_DRAIN_SECONDS": "30",
            "IMAGETASKS_LOG_LEVEL": "info",
        }
        self._life = ExitStack()
        self.running: Gateway
        # The logs of all its lives.
        self.logs: list[list[str]] = []

    def start(self) -> None:
        """Start it; return when it serves."""
        self.running = self._life.enter_context(
            gateway("--listen", self.address, environment=self._environment)
        )
        self.logs.append(self.running.log)

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended by itself."""
        self.running.process.send_signal(signal.SIGTERM)
        assert self.running.process.wait(SECONDS) == 0
        self._life.close()

    def close(self) -> None:
        """Whatever happened."""
        self._life.close()

    def calls(self, life: int) -> Counter[tuple[str, str]]:
        """How the calls ended that one of its lives had taken: method and code."""
        entries = [json.loads(line) for line in [*self.logs[life]] if line.startswith("{")]
        return Counter((entry["method"], entry["code"]) for entry in entries if entry["event"] == "call")


@pytest.fixture
def ec2() -> Iterator[Canned]:
    with canned() as running:
        running.limit(capacity=CAPACITY, refill=REFILL, speed=SPEED)
        yield running


@pytest.fixture
def replicas(ec2: Canned) -> Iterator[list[Replica]]:
    found = [Replica(ec2, port) for port in free_ports(2)]
    try:
        yield found
    finally:
        for each in found:
            each.close()


def post(ec2: Canned, worlds: Sequence[World]) -> None:
    ec2.post(*({"account": ACCOUNT, "region": each.region, "tasks": each.tasks} for each in worlds))


@pytest.mark.timeout(120)
def test_gateways_restarted_in_turn_under_load_lose_nothing(ec2: Canned, replicas: list[Replica]) -> None:
    chance = random.Random(20)
    worlds = [World(region, chance) for region in REGIONS]
    post(ec2, worlds)
    for each in replicas:
        each.start()
    endpoint = "ipv4:" + ",".join(each.address for each in replicas)
    command = [sys.executable, rolling_clients.__file__, endpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clients:
        try:
            assert clients.stdout is not None
            assert clients.stdout.readline() == b"ready\n"
            with Steps(ec2, worlds) as steps:
                for turn, each in enumerate(replicas * RESTARTS, 1):
                    # The one goes when the other has its share again, and tasks have ended meanwhile.
                    assert becomes(lambda: all(each.calls(-1).total() >= CALLS for each in replicas))
                    steps.wait_for(turn * STEPS)
                    each.stop()
                    each.start()
            by_itself = sum(world.ended for world in worlds)
            for world in worlds:
                world.step(last=True)
            post(ec2, worlds)
            truth = {
                f"{world.region} {task['AmiId']}": task["StoreTaskState"]
                for world in worlds
                for task in world.tasks
            }
            out, _ = clients.communicate(json.dumps(truth).encode() + b"\n", SECONDS * 2)
        finally:
            clients.kill()
    told = json.loads(out)
    for each in replicas:
        each.stop()
    sys.stdout.write(f"\n{steps.taken} steps, {by_itself} tasks ended; {told}\n")

    assert (told["faults"], told["late"]) == ({}, 0)
    assert told["waited"] == {"done": told["waits"]}
    assert set(told["asked"]) == {"list: whole", "stream: whole"}
    assert told["waits"] >= UNFINISHED
    assert told["told"] >= rolling_clients.WATCHES * told["waits"]
    # They did while gateways went and came.
    assert by_itself >= len(REGIONS) * (TASKS - UNFINISHED) + told["waits"] / 2

    for each in replicas:
        for life in range(RESTARTS + 1):
            calls = each.calls(life)
            # Who was told goodbye may have hung up before the watch has ended by itself; that nobody was left
            # without one, the clients have said.
            assert {how for how in calls if how[1] != "OK"} <= {("WatchStoreImageTasks", "CANCELLED")}
            sys.stdout.write(f"{each.address}, life {life}: {dict(calls)}\n")
    asked = [call for calls in ec2.calls().values() for call in calls]
    sys.stdout.write(f"{len(asked)} calls to EC2\n")
    assert len(asked) > 0
    assert not any(call.throttled for call in asked)
