"""Who reads all Regions once: `python sweep_peers.py gateway|aio|threads|alone WHERE` prints what it took."""

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from estates import REGIONS, account_id

Found = dict[str, float]
PAGE = 200
# A connection that is there, and all that is imported by the first call; the target is an empty one.
WARMING = "xx-warming-1"


def gateway(address: str) -> Found:
    """One stream of everything, by the generated stub."""
    from measured import METADATA  # noqa: PLC0415  # of one child

    from imagetasks.v1 import store_image_tasks_pb2 as pb  # noqa: PLC0415  # of one child
    from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub  # noqa: PLC0415

    async def read() -> Found:
        import grpc  # noqa: PLC0415

        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = StoreImageTaskServiceStub(channel)
            await stub.ListTargets(pb.ListTargetsRequest(), metadata=METADATA)
            began, used, tasks, targets, first = time.perf_counter(), time.process_time(), 0, 0, 0.0
            kept = []
            async for event in stub.StreamStoreImageTasks(
                pb.StreamStoreImageTasksRequest(), metadata=METADATA
            ):
                if event.HasField("page"):
                    first = first or time.perf_counter() - began
                tasks += len(event.page.store_image_task_results)
                targets += event.outcome.source == pb.SOURCE_LIVE
                kept.append(event)
            return found(began, used, tasks=tasks, targets=targets, first=first)

    return asyncio.run(read())


def aio(endpoint: str) -> Found:
    """aioboto3 as it comes."""
    from contextlib import AsyncExitStack  # noqa: PLC0415

    import aioboto3  # noqa: PLC0415

    async def read() -> Found:
        async with AsyncExitStack() as stack:
            session = aioboto3.Session()

            async def opened(region: str) -> Any:
                client = session.client("ec2", region_name=region, endpoint_url=endpoint)
                return await stack.enter_async_context(client)

            clients = [await opened(region) for region in REGIONS]
            await (await opened(WARMING)).describe_store_image_tasks(MaxResults=5)

            async def every(client: Any) -> list[Any]:
                pages = client.get_paginator("describe_store_image_tasks").paginate(
                    PaginationConfig={"PageSize": PAGE}
                )
                return [task async for page in pages for task in page["StoreImageTaskResults"]]

            began, used = time.perf_counter(), time.process_time()
            kept = await asyncio.gather(*map(every, clients))
            return found(began, used, tasks=sum(map(len, kept)))

    return asyncio.run(read())


def threads(endpoint: str) -> Found:
    """boto3 in a thread for each Region."""
    import boto3  # noqa: PLC0415

    session = boto3.Session()
    clients = [
        session.client("ec2", region_name=region, endpoint_url=endpoint) for region in (*REGIONS, WARMING)
    ]
    clients.pop().describe_store_image_tasks(MaxResults=5)

    def every(client: Any) -> list[Any]:
        pages = client.get_paginator("describe_store_image_tasks").paginate(
            PaginationConfig={"PageSize": PAGE}
        )
        return [task for page in pages for task in page["StoreImageTaskResults"]]

    with ThreadPoolExecutor(len(clients)) as pool:
        began, used = time.perf_counter(), time.process_time()
        kept = list(pool.map(every, clients))
        return found(began, used, tasks=sum(map(len, kept)))


def alone(endpoint: str) -> Found:
    """The EC2 itself: the same requests, what it answers thrown away but for the token."""
    import re  # noqa: PLC0415

    import aiohttp  # noqa: PLC0415

    async def read() -> Found:
        async with aiohttp.ClientSession() as session:

            async def every(region: str) -> None:
                form = {"Action": "DescribeStoreImageTasks", "MaxResults": str(PAGE)}
                scope = f"Credential=AKIA{account_id(1)}/20260101/{region}/ec2/aws4_request"
                while True:
                    async with session.post(endpoint, data=form, headers={"Authorization": scope}) as answer:
                        token = re.search(rb"<nextToken>(.+)</nextToken>", await answer.read())
                    if token is None:
                        return
                    form["NextToken"] = token[1].decode()

            began, used = time.perf_counter(), time.process_time()
            await asyncio.gather(*map(every, REGIONS))
            return found(began, used)

    return asyncio.run(read())


def found(began: float, used: float, **more: float) -> Found:
    """What it took since then."""
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used, **more}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
