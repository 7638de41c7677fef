"""A large estate, 20 accounts in 34 Regions with 200 tasks each: time to all of it, and the memory it takes.

    python benchmarks/bench_estate.py

The EC2 is canned XML without latency in a process of its own; the gateway is a process, the client another.
Beside it, in the same run, plain aioboto3 does the same: a session for each account, a client and a
paginator for each Region, all at once, and it stops at dicts. Then the EC2 alone, asked by a bare HTTP
client: what neither can be faster than.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from canned.launch import Canned, canned

ACCOUNTS = [f"{number:012}" for number in range(1, 21)]
REGIONS = [f"eu-bench{chr(97 + n // 9)}-{n % 9 + 1}" for n in range(34)]
TARGETS = len(ACCOUNTS) * len(REGIONS)
TASKS = 200
GOAL_SECONDS, GOAL_MIB = 5.0, 300


def fill(ec2: Canned) -> None:
    """Give every target its finished tasks."""
    now = datetime.now(UTC)
    tasks = [
        {
            "AmiId": f"ami-{number:017x}",
            "TaskStartTime": (now - timedelta(minutes=number)).isoformat(timespec="milliseconds")[:23] + "Z",
            "Bucket": "archive-of-golden-images",
            "S3objectKey": f"ami-{number:017x}.bin",
            "ProgressPercentage": 100,
            "StoreTaskState": "Completed",
            "StoreTaskFailureReason": "",
        }
        for number in range(TASKS)
    ]
    for account in ACCOUNTS:
        ec2.post(*({"account": account, "region": region, "tasks": tasks} for region in REGIONS))


@contextlib.contextmanager
def gateway(ec2: Canned) -> Iterator[tuple[str, int, float]]:
    """A gateway process that serves: its address, its process id, and the seconds until then."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as configuration:
        regions = json.dumps(REGIONS)
        for account in ACCOUNTS:
            configuration.write(
                f'[[accounts]]\nname = "account-{account}"\nregions = {regions}\n'
                f'role_arn = "arn:aws:iam::{account}:role/reader"\n'
                f'endpoint_url = "{ec2.endpoint}"\nsts_endpoint_url = "{ec2.endpoint}"\n'
            )
        configuration.flush()
        environment = ec2.environment("0" * 12) | {"IMAGETASKS_LOG_JSON": "true"}
        began = time.perf_counter()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "imagetasks_server"),
                *("--config", configuration.name, "--listen", "127.0.0.1:0"),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if '"serving"' in line)
            address = re.search(r'"address": "([^"]+)"', line)
            assert address is not None
            yield address[1], process.pid, time.perf_counter() - began
        finally:
            process.terminate()
            process.communicate()


def resident(pid: int | str = "self", kind: str = "VmRSS") -> float:
    """A process's memory in MiB, now or at most (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def processor(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    # Behind the name in brackets, which may hold anything: fields 14 and 15, in ticks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def stream(address: str) -> dict[str, float]:
    """Everything, once: seconds to the first row and to the end, and what came."""
    import grpc  # noqa: PLC0415  # of one child

    from imagetasks.v1 import store_image_tasks_pb2 as pb  # noqa: PLC0415  # of one child
    from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub  # noqa: PLC0415  # of one child

    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub: Any = StoreImageTaskServiceStub(channel)
        began, first, live = time.perf_counter(), 0.0, 0
        summary = None
        async for event in stub.StreamStoreImageTasks(pb.StreamStoreImageTasksRequest()):
            first = first or time.perf_counter() - began
            live += event.outcome.source == pb.SOURCE_LIVE
            summary = event.summary
        assert summary is not None
        return {
            "first": first,
            "all": time.perf_counter() - began,
            "targets": live,
            "tasks": summary.task_count,
        }


async def plain(endpoint: str) -> dict[str, float]:
    """The same by aioboto3 as it comes."""
    import aioboto3  # noqa: PLC0415  # of one child

    before, began, used = resident(), time.perf_counter(), time.process_time()
    first = 0.0

    async def read(session: Any, region: str) -> int:
        nonlocal first
        async with session.client("ec2", region_name=region, endpoint_url=endpoint) as client:
            pages = client.get_paginator("describe_store_image_tasks").paginate(
                PaginationConfig={"PageSize": TASKS}
            )
            found = [task async for page in pages for task in page["StoreImageTaskResults"]]
            first = first or time.perf_counter() - began
            kept.append(found)
            # As long as a program that polls keeps it.
            await all_there.wait()
            return len(found)

    kept: list[Any] = []
    all_there = asyncio.Event()
    sessions = [
        aioboto3.Session(aws_access_key_id=f"AKIA{account}", aws_secret_access_key="canned")
        for account in ACCOUNTS
    ]
    reads = [asyncio.create_task(read(session, region)) for session in sessions for region in REGIONS]
    while len(kept) < TARGETS:  # noqa: ASYNC110  # a benchmark may look
        await asyncio.sleep(0.01)
    seconds, memory, cpu = time.perf_counter() - began, resident(), time.process_time() - used
    all_there.set()
    tasks = sum(await asyncio.gather(*reads))
    return {"first": first, "all": seconds, "tasks": tasks, "mib": memory, "before": before, "cpu": cpu}


async def bare(endpoint: str) -> dict[str, float]:
    """The canned EC2 alone: the same requests, the answers thrown away."""
    import aiohttp  # noqa: PLC0415  # of one child

    form = {"Action": "DescribeStoreImageTasks", "MaxResults": str(TASKS)}
    async with aiohttp.ClientSession() as session:

        async def read(account: str, region: str) -> None:
            scope = f"AWS4-HMAC-SHA256 Credential=AKIA{account}/20260101/{region}/ec2/aws4_request"
            async with session.post(endpoint, data=form, headers={"Authorization": scope}) as answer:
                assert answer.status == 200
                await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(read(account, region) for account in ACCOUNTS for region in REGIONS))
        return {"all": time.perf_counter() - began}


def child(what: str, where: str, environment: dict[str, str]) -> dict[str, float]:
    """One of the clients, in a process of its own."""
    command = [sys.executable, __file__, what, where]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run() -> None:
    """Print the table."""
    with canned() as ec2:
        fill(ec2)
        environment = ec2.environment("0" * 12)
        alone = child("bare", ec2.endpoint, environment)
        with gateway(ec2) as (address, pid, seconds):
            empty, spent = resident(pid), -processor(pid)
            ours = child("stream", address, dict(os.environ))
            full, spent = resident(pid), spent + processor(pid)
            again = child("stream", address, dict(os.environ))
            most = resident(pid, "VmHWM")
        theirs = child("plain", ec2.endpoint, environment)
    assert ours["targets"] == TARGETS
    assert ours["tasks"] == theirs["tasks"] == TARGETS * TASKS
    print(
        f"{len(ACCOUNTS)} accounts x {len(REGIONS)} Regions = {TARGETS} targets of {TASKS} tasks, no latency"
    )
    print(f"{'':42}{'gateway':>10}{'aioboto3':>10}   goal")
    for label, unit, left, right, goal in (
        ("launch to SERVING, all clients built", "s", seconds, None, ""),
        ("first row", "s", ours["first"], theirs["first"], ""),
        ("first answers of all targets", "s", ours["all"], theirs["all"], GOAL_SECONDS),
        ("processor time of that", "s", spent, theirs["cpu"], ""),
        ("the same of the canned EC2 alone", "s", alone["all"], alone["all"], ""),
        ("all of it again", "s", again["all"], None, ""),
        ("memory before", "MiB", empty, theirs["before"], ""),
        ("memory with everything", "MiB", full, theirs["mib"], GOAL_MIB),
        ("most memory until the end", "MiB", most, None, ""),
    ):
        digits = 2 if unit == "s" else 0
        shown = ["" if value is None else f"{value:.{digits}f}" for value in (left, right)]
        print(f"{label:37} {unit:>4}{shown[0]:>10}{shown[1]:>10}   {goal}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        json.dump(asyncio.run(globals()[sys.argv[1]](sys.argv[2])), sys.stdout)
    else:
        run()
