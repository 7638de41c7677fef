"""A sweep over 34 Regions: start to SERVING, first and last row, and how long the loop is ever blocked.

    python benchmarks/bench_sweep.py

Beside each figure stands its limit in the same run: the Regions' own latencies. The EC2 is canned XML in
a process of its own; the client is a bare grpc.aio stub, the gateway another process.
"""

import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from canned.launch import Canned, canned
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server import main
from imagetasks_server.config import Settings

ACCOUNT = "123456789012"
REGIONS = [f"eu-bench{chr(97 + n // 9)}-{n % 9 + 1}" for n in range(34)]
FASTEST, SLOWEST = 0.030, 0.130
LATENCY = {
    region: FASTEST + (SLOWEST - FASTEST) * number / (len(REGIONS) - 1)
    for number, region in enumerate(REGIONS)
}
# Tasks of each Region, and the pages that they are.
ESTATES = ((50, 1), (600, 3))
RUNS = 7


def fill(ec2: Canned, count: int) -> None:
    """Give every Region so many finished tasks, and its latency."""
    now = datetime.now(UTC)
    for region in REGIONS:
        tasks = [
            {
                "AmiId": f"ami-{number:017x}",
                "TaskStartTime": (now - timedelta(minutes=number)).isoformat(timespec="milliseconds")[:23]
                + "Z",
                "Bucket": "archive",
                "S3objectKey": f"ami-{number:017x}.bin",
                "ProgressPercentage": 100,
                "StoreTaskState": "Completed",
                "StoreTaskFailureReason": "",
            }
            for number in range(count)
        ]
        ec2.post({"account": ACCOUNT, "region": region, "tasks": tasks, "seconds": LATENCY[region]})


def environment(ec2: Canned) -> dict[str, str]:
    """A gateway's environment; its budget is not what is measured."""
    regions = ",".join(f'"{region}"' for region in REGIONS)
    return ec2.environment(ACCOUNT) | {
        "IMAGETASKS_ACCOUNTS": f'[{{"name": "main", "regions": [{regions}]}}]',
        "IMAGETASKS_BUDGET__CAPACITY": "1000000",
        "IMAGETASKS_BUDGET__REFILL": "100000",
        "IMAGETASKS_BUDGET__INITIAL": "1000000",
        "IMAGETASKS_LISTEN": "127.0.0.1:0",
        "IMAGETASKS_LOG_JSON": "true",
    }


@contextlib.contextmanager
def gateway(ec2: Canned) -> Iterator[tuple[str, float]]:
    """A gateway process: its address, and the seconds from its launch to SERVING."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "imagetasks_server"], env=environment(ec2), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if '"serving"' in line)
        seconds = time.perf_counter() - began
        address = re.search(r'"address": "([^"]+)"', line)
        assert address is not None
        with grpc.insecure_channel(address[1]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
        yield address[1], seconds
    finally:
        process.terminate()
        process.communicate()


async def sweep(address: str, go: Callable[[], None] = lambda: None) -> dict[str, list[float]]:
    """One cold stream: per Region the seconds at which each of its pages arrived."""
    arrivals: dict[str, list[float]] = defaultdict(list)
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub: Any = StoreImageTaskServiceStub(channel)
        request = pb.StreamStoreImageTasksRequest()
        request.max_age.SetInParent()
        go()
        began = time.perf_counter()
        async for event in stub.StreamStoreImageTasks(request):
            if event.HasField("page"):
                arrivals[event.page.target.region].append(time.perf_counter() - began)
    return arrivals


def when_told() -> None:
    """Say that the channel is ready, and wait for a line."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


async def blocked(ec2: Canned) -> list[float]:
    """Milliseconds of the worst turn of a gateway's loop, in each of several cold sweeps."""
    for name, value in environment(ec2).items():
        if name.startswith(("AWS_", "IMAGETASKS_")):
            os.environ[name] = value
    found = []
    for _ in range(RUNS):
        async with serving() as address:
            worst = 0.0

            async def heartbeat() -> None:
                nonlocal worst
                while True:
                    before = time.perf_counter()
                    await asyncio.sleep(0.001)
                    worst = max(worst, time.perf_counter() - before - 0.001)

            pipe = asyncio.subprocess.PIPE
            client = await asyncio.create_subprocess_exec(
                sys.executable, __file__, address, stdin=pipe, stdout=pipe
            )
            assert client.stdin is not None
            assert client.stdout is not None
            await client.stdout.readline()
            beating = asyncio.create_task(heartbeat())
            client.stdin.write(b"go\n")
            assert await client.wait() == 0
            beating.cancel()
            found.append(worst * 1000)
    return found


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """A gateway in this process, built by `main`, SERVING."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    warm = main._warm

    async def then_tell(*arguments: Any) -> None:
        await warm(*arguments)
        ready.set_result(arguments[-1].address)

    main._warm = then_tell
    task = asyncio.create_task(main._serve(Settings(), Settings))
    try:
        yield await ready
    finally:
        main._warm = warm
        os.kill(os.getpid(), 15)
        await task


def spread(values: list[float], unit: str = "ms") -> str:
    """Median and range."""
    return f"{statistics.median(values):8.2f} {unit:2}  ({min(values):.2f} to {max(values):.2f})"


def measure(ec2: Canned, tasks: int, pages: int) -> None:
    """Print the table of one estate."""
    starts, firsts, lasts, late = [], [], [], []
    fill(ec2, tasks)
    for _ in range(RUNS):
        with gateway(ec2) as (address, seconds):
            starts.append(seconds * 1000)
            arrivals = asyncio.run(sweep(address))
        late += [
            (at - LATENCY[region] * page) * 1000
            for region, ats in arrivals.items()
            for page, at in enumerate(ats, 1)
        ]
        firsts.append((min(ats[0] for ats in arrivals.values()) - FASTEST) * 1000)
        lasts.append(max(ats[-1] for ats in arrivals.values()) / (SLOWEST * pages))
    turns = asyncio.run(blocked(ec2))
    late.sort()
    print(
        f"34 Regions of {tasks} tasks ({pages} pages, one after the other), 30 to 130 ms a page; {RUNS} runs"
    )
    print(f"launch to SERVING                       {spread(starts)}   goal 1500")
    print(f"first row behind the fastest Region     {spread(firsts)}   goal 20")
    print(f"each page behind its Region             {spread(late)}   p90 {late[int(len(late) * 0.9)]:.1f}")
    print(f"last row / the slowest Region's time    {spread(lasts, 'x')}   goal 1.15")
    print(f"worst turn of the loop during a sweep   {spread(turns)}   goal 50")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(sweep(sys.argv[1], when_told))
    else:
        with canned() as canned_ec2:
            for estate in ESTATES:
                measure(canned_ec2, *estate)
