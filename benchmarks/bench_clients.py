"""What clients cost: the gateway's, and botocore's as they come. Each row is a process of its own.

Compare within one run. Columns: building all clients; the longest time the event loop stood still
meanwhile; the first call of each client, at most 8 at once; memory that all this took.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aioboto3
from aiobotocore.config import AioConfig

from canned.launch import canned
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws

REGIONS = [f"eu-central-{number}" for number in range(1, 35)]
SIZES = {34: 1, 680: 20}
AT_ONCE = 8


def main() -> None:
    """Print the table; with `--child` measure one row and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("KIND", "ACCOUNTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, accounts = arguments.child
        print(json.dumps(asyncio.run(measure(kind, int(accounts)))))
        return
    print(f"{'clients':>7}  {'kind':<12} {'build':>8} {'stood still':>12} {'first calls':>12} {'memory':>8}")
    with canned() as ec2:
        for size, accounts in SIZES.items():
            for kind in ("as they come", "the gateway's"):
                result = subprocess.run(
                    [sys.executable, __file__, "--child", kind, str(accounts)],
                    env=ec2.environment("000000000001"),
                    stdout=subprocess.PIPE,
                    check=True,
                )
                row = json.loads(result.stdout)
                print(
                    f"{size:>7}  {kind:<13} {row['build']:>6.2f} s {row['still'] * 1000:>9.0f} ms "
                    f"{row['calls']:>10.2f} s {row['memory']:>5.0f} MB"
                )


async def measure(kind: str, accounts: int) -> dict[str, float]:
    """One row: seconds to build and to call, the longest pause of the loop, megabytes."""
    make = come if kind == "as they come" else ours
    before = memory()
    watch = asyncio.create_task(longest_pause())
    await asyncio.sleep(0.01)
    start = time.perf_counter()
    clients, close = await make(accounts)
    build = time.perf_counter() - start
    watch.cancel()
    await asyncio.wait([watch])
    still = max(PAUSES)
    limit = asyncio.Semaphore(AT_ONCE)

    async def call(client: Any) -> None:
        async with limit:
            await client.describe_store_image_tasks(MaxResults=5)

    start = time.perf_counter()
    await asyncio.gather(*map(call, clients))
    calls = time.perf_counter() - start
    taken = memory() - before
    await close()
    return {"build": build, "still": still, "calls": calls, "memory": taken}


PAUSES = [0.0]


async def longest_pause() -> None:
    """Write down how long the loop takes to come round, until cancelled."""
    last = time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            PAUSES.append(now - last)
            last = now
    finally:
        # A loop that stood still to the end never came here before.
        PAUSES.append(time.perf_counter() - last)


async def come(accounts: int) -> tuple[list[Any], Any]:
    """Clients as they come, one session for each account."""
    clients = []
    for _ in range(accounts):
        session = aioboto3.Session()
        config = AioConfig(retries={"mode": "standard"})
        clients += [
            await session.client("ec2", region_name=region, config=config).__aenter__() for region in REGIONS
        ]

    async def close() -> None:
        for client in clients:
            await client.close()

    return clients, close


async def ours(accounts: int) -> tuple[list[Any], Any]:
    """The gateway's clients."""
    with ThreadPoolExecutor(1) as builders:
        settings = Settings(accounts=[{"name": f"a{number}"} for number in range(accounts)])
        aws = Aws(settings, builders)
        opened = [await asyncio.to_thread(aws.open, each) for each in settings.accounts]
        clients = [
            await each._session.client("ec2", region)  # nothing else needs it
            for each in opened
            for region in REGIONS
        ]

    async def close() -> None:
        for each in opened:
            await each.close()

    return clients, close


def memory() -> float:
    """Resident megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
