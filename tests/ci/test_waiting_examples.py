"""The examples of the whole clients on the gateway with its sandbox: they wait for tasks, then react."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest

from canned.launch import Canned, canned
from processes import ROOT, SECONDS, Gateway, becomes, free_ports, gateway
from reactions import hook, in_progress


@dataclass(frozen=True)
class Built:
    """An example as its language has built it.

    Attributes:
        language: What `make client-…` builds.
        path: Where it is then.
        by: What runs it.
        second: How a second is written.
    """

    language: str
    path: Path
    by: tuple[str, ...]
    second: str


BUILT = [
    Built("go", ROOT / ".build/bin/wait-and-react", (), "1s"),
    Built("typescript", ROOT / "clients/typescript/dist/examples/wait-and-react.js", ("node",), "1"),
]

ACCOUNT, REGION = "000000000001", "eu-one-1"

Run: TypeAlias = "Callable[..., subprocess.Popen[str]]"


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with gateway("--sandbox", "--sandbox-speed", "20") as running:
        yield running


@pytest.fixture(params=BUILT, ids=lambda built: built.language)
def built(request: pytest.FixtureRequest) -> Built:
    example: Built = request.param
    assert example.path.is_file(), f"make client-{example.language} builds it"
    return example


@pytest.fixture
def run(built: Built, running: Gateway) -> Run:
    def started(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*built.by, str(built.path), "--endpoint", running.address, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


def test_it_waits_for_an_image_and_runs_a_command(run: Run, running: Gateway, tmp_path: Path) -> None:
    task = in_progress(running)
    told = tmp_path / "told"
    command = f'echo "$IMAGETASKS_AMI_ID $IMAGETASKS_ACCOUNT $IMAGETASKS_REGION $IMAGETASKS_STATE" > {told}'
    with run("--region", task.region, "--exec", command, task.ami_id) as process:
        output, errors = process.communicate(timeout=60)
    (state,) = re.findall(
        rf"^{task.ami_id} {task.account} {task.region} (Completed|Failed)\n$", told.read_text()
    )
    assert output == ""
    assert f"{task.ami_id} in {task.account} {task.region}: {state}\n" in errors
    assert process.returncode == (0 if state == "Completed" else 1)


def test_it_gives_up_when_its_patience_ends(built: Built, run: Run) -> None:
    with run("--timeout", built.second, "ami-00000000000000000") as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors == "wait-and-react: not all have ended: TIMEOUT\n"


def test_it_follows_and_calls_a_hook_for_each_that_ends(run: Run) -> None:
    with hook() as (url, called), run("--hook", url) as process:
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, rest
    for task, line in zip(called, (said + rest).splitlines(), strict=False):
        state = task["ec2_store_task_state"]
        assert state in {"Completed", "Failed"}
        assert line == f"{task['ami_id']} in {task['account']} {task['region']}: {state}"
    assert called


def test_what_stays_wrong_is_said(run: Run) -> None:
    with run("--region", "xx-nowhere-1") as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert re.search(r"^wait-and-react: UNKNOWN_REGION: ", errors, re.MULTILINE)


class Stored:
    """Store tasks of one Region of EC2, which end one after the other."""

    def __init__(self, ec2: Canned, count: int) -> None:
        self._ec2 = ec2
        began = datetime.now(UTC)
        self._tasks = [
            {
                "AmiId": f"ami-{number:017x}",
                "TaskStartTime": f"{began - timedelta(minutes=number):%Y-%m-%dT%H:%M:%S.000Z}",
                "Bucket": "archive",
                "S3objectKey": f"{number}.bin",
                "ProgressPercentage": 50,
                "StoreTaskState": "InProgress",
                "StoreTaskFailureReason": "",
            }
            for number in range(count)
        ]
        self.ended: list[str] = []
        self._post()

    def end(self, count: int) -> None:
        """So many more end."""
        for task in self._tasks[len(self.ended) :][:count]:
            task.update(StoreTaskState="Completed", ProgressPercentage=100)
            self.ended.append(str(task["AmiId"]))
        self._post()

    def _post(self) -> None:
        self._ec2.post({"account": ACCOUNT, "region": REGION, "tasks": self._tasks})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_gateway_loses_no_end_and_tells_none_twice(built: Built, number: int) -> None:
    with canned() as ec2, hook() as (url, called), ExitStack() as lives:
        stored = Stored(ec2, 60)
        (port,) = free_ports(1)
        environment = ec2.environment(ACCOUNT) | {
            "IMAGETASKS_ACCOUNTS": json.dumps([{"name": "main", "regions": [REGION]}]),
            "IMAGETASKS_BUDGET": json.dumps({"capacity": 1000, "refill": 1000, "initial": 1000}),
            "IMAGETASKS_DEFAULT_MAX_AGE": "0.2",
            "IMAGETASKS_POLL_INTERVAL": "0.2",
        }
        address = f"127.0.0.1:{port}"

        def follows() -> bool:
            """Whether the example has begun: it tells of what ends from then on."""
            stored.end(1)
            return becomes(lambda: called, 0.5)

        def told() -> bool:
            due = stored.ended[stored.ended.index(called[0]["ami_id"]) :]
            return becomes(lambda: len(called) >= len(due))

        process = lives.enter_context(
            subprocess.Popen(
                [*built.by, str(built.path), "--endpoint", address, "--hook", url], stderr=subprocess.DEVNULL
            )
        )
        lives.callback(process.kill)
        for _ in range(3):
            with gateway("--listen", address, environment=environment) as running:
                assert becomes(follows)
                stored.end(2)
                assert told()
                stored.end(1)
                running.process.send_signal(number)
                running.process.wait(SECONDS)
            # Nobody is there to tell of it.
            stored.end(1)
        with gateway("--listen", address, environment=environment):
            assert told()
            count = len(called)
            assert not becomes(lambda: len(called) > count, 1.0)
        assert process.poll() is None
    assert {each["ec2_store_task_state"] for each in called} == {"Completed"}
    due = stored.ended[stored.ended.index(called[0]["ami_id"]) :]
    assert sorted(each["ami_id"] for each in called) == due
