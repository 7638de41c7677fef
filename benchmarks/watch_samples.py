"""Some subscribers among many: `python watch_samples.py ADDRESS` tells how late changes reach them.

For each line of its standard input, a number, it opens so many more, and prints how many there are when
they are caught up. For each change it prints the milliseconds from the moment at which the server knew of it
to each of them. It ends with its standard input.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

import grpc
import uvloop
from measured import METADATA

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub

# One is enough for so many.
CHANNELS = 4


async def sample(address: str) -> None:
    count = covered = 0
    # By what is told: the moment at which it became known.
    found: defaultdict[str, list[float]] = defaultdict(list)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]

    async def one(number: int) -> None:
        nonlocal covered
        stub: Any = StoreImageTaskServiceStub(channels[number % CHANNELS])
        fresh = True
        async for event in stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest(), metadata=METADATA):
            if event.HasField("snapshot_complete"):
                covered += 1
                fresh = False
                if covered == count:
                    print(count, flush=True)
            elif event.HasField("changes") and not fresh:
                task = event.changes.changes[0].task
                of_one = found[task.store_task_failure_reason]
                of_one.append((time.monotonic_ns() - int(task.store_task_failure_reason)) / 1e6)
                if len(of_one) == count:
                    print(json.dumps(of_one), flush=True)

    tasks = []
    while more := await asyncio.to_thread(sys.stdin.readline):
        began, count = count, count + int(more)
        tasks += [asyncio.create_task(one(number)) for number in range(began, count)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    uvloop.run(sample(sys.argv[1]))
