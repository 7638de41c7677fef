"""The examples of the whole clients on the gateway with its sandbox: they wait for tasks, then react."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from processes import ROOT, SECONDS, Gateway, gateway
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
