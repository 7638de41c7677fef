"""From the launch until it serves, and the memory it takes then, beside aioboto3's clients as they come."""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from estates import REGIONS, account_id, accounts, fill
from frame import Benchmark, Goal, Result, Row, medians, ratios
from measured import gateway, itself, told

from canned.launch import Canned, canned

PEERS = str(Path(__file__).with_name("sweep_peers.py"))
TASKS, AT_ONCE = 5, 8
# Accounts, and the rounds of each.
SIZES = {1: 5, 20: 2}


def measure(quick: bool) -> Result:
    """For one account and for twenty."""
    rows: list[Row] = []
    with canned() as ec2:
        fill(ec2, TASKS, numbers=max(SIZES))
        for count, rounds in ({1: 2} if quick else SIZES).items():
            rows += of_accounts(ec2, count, rounds)
    return Result(rows)


def of_accounts(ec2: Canned, count: int, rounds: int) -> list[Row]:
    """Both take turns."""
    serving: list[float] = []
    answered: list[float] = []
    memory: dict[str, list[float]] = {"gateway": [], "aioboto3": []}
    seconds: list[float] = []
    for _ in range(rounds):
        with gateway(ec2, accounts(count, ec2)) as ours:
            serving.append(ours.seconds)
            first = told(PEERS, "gateway", ours.address)
            assert first["targets"] == count * len(REGIONS)
            answered.append(ours.seconds + first["seconds"])
            memory["gateway"].append(ours.memory())
        began = time.time()
        command = [sys.executable, __file__, ec2.endpoint, str(count)]
        done = subprocess.run(command, env=ec2.environment(account_id(1)), stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        seconds.append(found["at"] - began)
        memory["aioboto3"].append(found["memory"])
    of = f"{count * len(REGIONS)} targets"
    beside = "aioboto3's clients as they come, first calls done"
    return [
        Row(
            f"launch to SERVING, {of}",
            beside,
            Goal(most=0.5),
            ratios(serving, seconds),
            medians("s", gateway=serving, aioboto3=seconds),
        ),
        Row(
            f"launch to all answers, {of}",
            beside,
            Goal(),
            ratios(answered, seconds),
            medians("s", gateway=answered),
        ),
        Row(
            f"memory after the first answers, {of}",
            beside,
            Goal(most=0.6),
            ratios(memory["gateway"], memory["aioboto3"]),
            medians("MiB", **memory),
        ),
    ]


async def as_they_come(endpoint: str, count: int) -> dict[str, float]:
    """A session for each account, a client for each target, and a call of each."""
    import aioboto3  # noqa: PLC0415  # of the child

    limit = asyncio.Semaphore(AT_ONCE)

    async def call(client: Any) -> None:
        async with limit:
            await client.describe_store_image_tasks(MaxResults=TASKS)

    async with AsyncExitStack() as stack:
        clients = []
        for number in range(1, count + 1):
            session = aioboto3.Session(
                aws_access_key_id=f"AKIA{account_id(number)}", aws_secret_access_key="canned"
            )
            for region in REGIONS:
                client = session.client("ec2", region_name=region, endpoint_url=endpoint)
                clients.append(await stack.enter_async_context(client))
        await asyncio.gather(*map(call, clients))
        return {"at": time.time(), "memory": itself().memory()}


BENCHMARK = Benchmark(
    "start",
    "Starting",
    "A gateway process with callers, quotas, metrics and log on, its accounts but the first by roles, "
    "from its launch. The peer is a process that imports aioboto3, builds a client for each target, with "
    f"given keys, and calls each, at most {AT_ONCE} at once.",
    measure,
)

if __name__ == "__main__":
    print(json.dumps(asyncio.run(as_they_come(sys.argv[1], int(sys.argv[2])))))
