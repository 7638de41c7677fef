"""A cold sweep of 34 Regions: the processor from EC2's bytes to the caller's messages, and the time."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from estates import REGIONS, accounts, fill
from frame import Benchmark, Goal, Result, Row, medians, ratios
from measured import TOKEN, gateway, told

from canned.launch import Canned, canned

PEERS = str(Path(__file__).with_name("sweep_peers.py"))
TASKS = 600
# Where the AWS command line is, if not where make installs it.
AWS = os.environ.get("IMAGETASKS_AWS_CLI") or str(Path(__file__).parents[1] / ".venv-awscli/bin/aws")


def measure(quick: bool) -> Result:
    """All take turns; each gateway is a new process, for only a new one is cold."""
    rounds = 1 if quick else 5
    cpu: dict[str, list[float]] = {"gateway": [], "of_it_the_caller": [], "aioboto3": [], "boto3_threads": []}
    wall: dict[str, list[float]] = {"gateway": [], "aioboto3": [], "boto3_threads": [], "EC2_alone": []}
    command_lines: dict[str, list[float]] = {"imagetasks": [], "AWS_CLI": []}
    with canned() as ec2:
        fill(ec2, TASKS)
        environment = ec2.environment("0" * 11 + "1")
        for _ in range(rounds):
            with gateway(ec2, accounts(1, ec2)) as ours:
                before = ours.processor()
                found = told(PEERS, "gateway", ours.address)
                assert (found["targets"], found["tasks"]) == (len(REGIONS), len(REGIONS) * TASKS)
                cpu["gateway"].append(ours.processor() - before + found["cpu"])
                cpu["of_it_the_caller"].append(found["cpu"])
                wall["gateway"].append(found["seconds"])
            for name, peer in (("aioboto3", "aio"), ("boto3_threads", "threads"), ("EC2_alone", "alone")):
                found = told(PEERS, peer, ec2.endpoint, environment=environment)
                wall[name].append(found["seconds"])
                if name in cpu:
                    assert found["tasks"] == len(REGIONS) * TASKS
                    cpu[name].append(found["cpu"])
        for _ in range(1 if quick else 2):
            command_lines["imagetasks"].append(by_our_command(ec2))
            command_lines["AWS_CLI"].append(region_after_region(ec2, REGIONS[:2] if quick else REGIONS))
    of = f"cold sweep, {len(REGIONS)} Regions x {TASKS} tasks"
    beside = "from 2 Regions" if quick else "Region after Region"
    return Result(
        [
            Row(
                f"{of}: processor",
                "aioboto3 as it comes, paginator and gather, to dicts",
                Goal(most=0.30),
                ratios(cpu["gateway"], cpu["aioboto3"]),
                medians("s", **cpu),
            ),
            Row(
                f"{of}: processor",
                "boto3 in threads",
                Goal(),
                ratios(cpu["gateway"], cpu["boto3_threads"]),
            ),
            Row(
                f"{of}: times faster",
                f"the AWS CLI, {beside}",
                Goal(least=20),
                ratios(command_lines["AWS_CLI"], command_lines["imagetasks"]),
                medians("s", **command_lines),
            ),
            Row(
                f"{of}: times faster",
                "boto3 in 34 threads",
                Goal(least=2),
                ratios(wall["boto3_threads"], wall["gateway"]),
                medians("s", **wall),
            ),
        ]
    )


def by_our_command(ec2: Canned) -> float:
    """Seconds of `imagetasks stream`, from its launch to its end, on a cold gateway."""
    with gateway(ec2, accounts(1, ec2)) as ours, tempfile.TemporaryFile() as output:
        command = [sys.executable, "-m", "imagetasks", "stream", "--output", "json"]
        environment: dict[str, Any] = os.environ | {"IMAGETASKS_TOKEN": TOKEN}
        began = time.perf_counter()
        subprocess.run([*command, "--endpoint-url", ours.address], env=environment, stdout=output, check=True)
        return time.perf_counter() - began


def region_after_region(ec2: Canned, regions: tuple[str, ...]) -> float:
    """Seconds that the AWS CLI takes for all Regions, of which only these are asked."""
    environment = ec2.environment("0" * 11 + "1")
    began = time.perf_counter()
    for region in regions:
        with tempfile.TemporaryFile() as output:
            command = [AWS, "ec2", "describe-store-image-tasks", "--output", "json", "--region", region]
            subprocess.run(command, env=environment, stdout=output, check=True)
    return (time.perf_counter() - began) / len(regions) * len(REGIONS)


BENCHMARK = Benchmark(
    "sweep",
    "A cold sweep",
    "EC2 without latency, in a process of its own. A new gateway process each time, with callers, quotas, "
    "metrics and log on, asked for everything by one stream; its caller's processor counts too. All clients "
    "are built before time begins, but for the command lines, which count from their launch. All share the "
    "cores with the EC2: `EC2 alone` is how long it takes with its answers thrown away.",
    measure,
    (AWS,),
)
