"""Two command lines with the same answer: `imagetasks ec2` on a gateway, and the AWS CLI."""

import json
import os
import subprocess
import sys
import time
from typing import Any

from estates import accounts, fill
from frame import Benchmark, Goal, Result, Row, medians, ratios
from measured import TOKEN, gateway
from sweep import AWS

from canned.launch import canned

WORDS = ("ec2", "describe-store-image-tasks", "--output", "json", "--region")
REGION = "eu-central-1"


def measure(quick: bool) -> Result:
    """They take turns, after one round that counts for nothing."""
    seconds: dict[str, list[float]] = {"imagetasks": [], "AWS_CLI": []}
    with canned() as ec2:
        fill(ec2, 50, regions=[REGION])
        environment = ec2.environment("0" * 11 + "1")
        with gateway(ec2, accounts(1, ec2, [REGION])) as ours:
            reach = os.environ | {"IMAGETASKS_ENDPOINT": ours.address, "IMAGETASKS_TOKEN": TOKEN}
            for _ in range(4 if quick else 11):
                mine, said = timed([sys.executable, "-m", "imagetasks", *WORDS, REGION], reach)
                theirs, also = timed([AWS, *WORDS, REGION], environment)
                assert said == also
                seconds["imagetasks"].append(mine)
                seconds["AWS_CLI"].append(theirs)
    kept = {name: values[1:] for name, values in seconds.items()}
    return Result(
        [
            Row(
                "the command line, one Region of 50 tasks: times faster",
                "the AWS CLI, same answer",
                Goal(least=3),
                ratios(kept["AWS_CLI"], kept["imagetasks"]),
                medians("s", **kept),
            )
        ]
    )


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, Any]:
    """Seconds from launch to end, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


BENCHMARK = Benchmark(
    "command_lines",
    "The command line",
    "Whole processes, from launch to end, in turns, on the same canned EC2 without latency. The gateway has "
    "callers, quotas, metrics and log on.",
    measure,
    (AWS,),
)
