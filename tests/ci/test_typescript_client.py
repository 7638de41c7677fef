"""The TypeScript client's example on the gateway with its sandbox: it waits for store tasks, then reacts."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import ROOT, SECONDS, Gateway, gateway
from reactions import hook, in_progress

EXAMPLE = ROOT / "clients/typescript/dist/examples/wait-and-react.js"


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with gateway("--sandbox", "--sandbox-speed", "20") as running:
        yield running


def example(running: Gateway, *arguments: str) -> "subprocess.Popen[str]":
    assert EXAMPLE.is_file(), "make client-typescript builds it"
    return subprocess.Popen(
        ["node", str(EXAMPLE), "--endpoint", running.address, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_waits_for_an_image_and_runs_a_command(running: Gateway, tmp_path: Path) -> None:
    task = in_progress(running)
    told = tmp_path / "told"
    command = f'echo "$IMAGETASKS_AMI_ID $IMAGETASKS_ACCOUNT $IMAGETASKS_REGION $IMAGETASKS_STATE" > {told}'
    with example(running, "--region", task.region, "--exec", command, task.ami_id) as process:
        output, errors = process.communicate(timeout=60)
    (state,) = re.findall(
        rf"^{task.ami_id} {task.account} {task.region} (Completed|Failed)\n$", told.read_text()
    )
    assert output == ""
    assert f"{task.ami_id} in {task.account} {task.region}: {state}\n" in errors
    assert process.returncode == (0 if state == "Completed" else 1)


def test_it_gives_up_when_its_patience_ends(running: Gateway) -> None:
    with example(running, "--timeout", "1", "ami-00000000000000000") as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors == "wait-and-react: not all have ended: TIMEOUT\n"


def test_it_follows_and_calls_a_hook_for_each_that_ends(running: Gateway) -> None:
    with hook() as (url, called), example(running, "--hook", url) as process:
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


def test_what_stays_wrong_is_said(running: Gateway) -> None:
    with example(running, "--region", "xx-nowhere-1") as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert re.search(r"^wait-and-react: UNKNOWN_REGION: ", errors, re.MULTILINE)
