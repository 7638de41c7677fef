"""A thousand callers of every kind in one process, for as long as its stdin is open.

    python callers.py gateway 1000 unix:/tmp/a unix:/tmp/b
    python callers.py boto3 20 http://127.0.0.1:40000

The first asks gateways; the second asks EC2 itself for the same things, by the SDK's plain clients. Prints
what came of the calls as JSON: by kind, how often which code and reason or, of targets, which source.
"""

import asyncio
import itertools
import json
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

REGIONS = ("eu-deep-1", "eu-flat-1", "eu-idle-1")
FILTERS = [{"Name": "task-state", "Values": ["InProgress"]}]
KNOWN = [f"ami-{number:017x}" for number in range(3)]
# Seconds between two calls of one caller, at most.
PAUSE = 1.0
# Callers that share a connection.
PER_CHANNEL = 10
SECONDS = 20.0

Tally = defaultdict[str, Counter[str]]


def unknown_ids(chance: random.Random) -> list[str]:
    """AMIs that nobody has asked for before."""
    return [f"ami-{chance.getrandbits(64):017x}" for _ in range(20)]


class GatewayCaller:
    """One caller of a gateway."""

    def __init__(self, stub: Any, tally: Tally, chance: random.Random) -> None:
        from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415  # not of boto3's clients

        from imagetasks.v1 import store_image_tasks_pb2  # noqa: PLC0415

        self._pb: Any = store_image_tasks_pb2
        self._none = Duration()
        self._stub = stub
        self._tally = tally
        self._chance = chance

    async def call_on(self, kind: str) -> None:
        """Call again and again."""
        import grpc  # noqa: PLC0415

        while True:
            try:
                async for told in getattr(self, f"_{kind}")():
                    self._tally[kind][told] += 1
            except grpc.RpcError as error:
                self._tally[kind][_reason(error)] += 1
            await asyncio.sleep(self._chance.uniform(0, PAUSE))

    async def _describe(self) -> AsyncIterator[str]:
        for told in _sources(await self._ask()):
            yield told

    async def _ids(self) -> AsyncIterator[str]:
        for told in _sources(await self._ask(image_ids=KNOWN)):
            yield told

    async def _filters(self) -> AsyncIterator[str]:
        filters = [self._pb.Filter(name=each["Name"], values=each["Values"]) for each in FILTERS]
        for told in _sources(await self._ask(filters=filters)):
            yield told

    async def _fresh(self) -> AsyncIterator[str]:
        for told in _sources(await self._ask(max_age=self._none)):
            yield told

    async def _stream(self) -> AsyncIterator[str]:
        request = self._pb.StreamStoreImageTasksRequest(max_age=self._none)
        async for event in self._stub.StreamStoreImageTasks(request, timeout=SECONDS, wait_for_ready=True):
            if event.HasField("outcome"):
                yield _source(event.outcome)

    async def _pages_of_one(self) -> AsyncIterator[str]:
        token = ""
        for _ in range(5):
            page = await self._ask(max_results=1, next_token=token)
            for told in _sources(page):
                yield told
            token = page.next_token
            if not token:
                break

    async def _dry_run(self) -> AsyncIterator[str]:
        for told in _sources(await self._ask(dry_run=True)):
            yield told

    async def _unknown(self) -> AsyncIterator[str]:
        region = self._chance.choice(REGIONS)
        for told in _sources(await self._ask(image_ids=unknown_ids(self._chance), regions=[region])):
            yield told

    async def _leaving(self) -> AsyncIterator[str]:
        call = asyncio.ensure_future(self._ask(max_age=self._none))
        await asyncio.sleep(self._chance.uniform(0, 0.05))
        call.cancel()
        await asyncio.wait([call])
        yield "left"

    async def _ask(self, **fields: Any) -> Any:
        request = self._pb.DescribeStoreImageTasksRequest(**fields)
        return await self._stub.DescribeStoreImageTasks(request, timeout=SECONDS, wait_for_ready=True)


KINDS = tuple(
    name.removeprefix("_")
    for name in (
        *("_describe", "_ids", "_filters", "_fresh", "_stream"),
        *("_pages_of_one", "_dry_run", "_unknown", "_leaving"),
    )
)


def _source(outcome: Any) -> str:
    from imagetasks.v1 import store_image_tasks_pb2 as pb  # noqa: PLC0415

    source = pb.Source.Name(outcome.source).removeprefix("SOURCE_")
    return f"{source} {_info(outcome.status)}".strip()


def _sources(response: Any) -> list[str]:
    return [_source(outcome) for outcome in response.target_outcomes]


def _info(status: Any) -> str:
    from google.rpc.error_details_pb2 import ErrorInfo  # noqa: PLC0415

    info = ErrorInfo()
    for detail in status.details[:1]:
        detail.Unpack(info)
    return str(info.reason)


def _reason(error: Any) -> str:
    from google.rpc.status_pb2 import Status  # noqa: PLC0415

    details = dict(error.trailing_metadata() or ())
    status = Status.FromString(details.get("grpc-status-details-bin", b""))
    return f"{error.code().name} {_info(status)}".strip()


async def of_gateways(count: int, addresses: Sequence[str]) -> Tally:
    """So many callers, each kind as often as the others, on all gateways alike, until stdin ends."""
    import grpc  # noqa: PLC0415

    from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub  # noqa: PLC0415

    tally: Tally = defaultdict(Counter)
    # A gateway that comes back is found soon.
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 300),
    ]
    channels = [
        grpc.aio.insecure_channel(address, options=options)
        for address, _ in zip(itertools.cycle(addresses), range(count // PER_CHANNEL), strict=False)
    ]
    stubs: list[Any] = [StoreImageTaskServiceStub(channel) for channel in channels]
    calling = [
        asyncio.create_task(
            GatewayCaller(stubs[number % len(stubs)], tally, random.Random(number)).call_on(
                KINDS[number // PER_CHANNEL % len(KINDS)]
            )
        )
        for number in range(count)
    ]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    done, _ = await asyncio.wait([ended, *calling], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {ended}:
        task.result()
    for task in calling:
        task.cancel()
    await asyncio.wait(calling)
    for channel in channels:
        await channel.close()
    return tally


def of_ec2(count: int, endpoint: str) -> Tally:
    """So many of the SDK's clients, until stdin ends."""
    import boto3  # noqa: PLC0415
    from botocore.exceptions import ClientError  # noqa: PLC0415

    tally: Tally = defaultdict(Counter)
    ended = threading.Event()
    session = boto3.Session()
    clients = {region: session.client("ec2", region_name=region, endpoint_url=endpoint) for region in REGIONS}

    def call_on(kind: str, chance: random.Random) -> None:
        asked: dict[str, Callable[[Any], Any]] = {
            "describe": _all,
            "ids": lambda ec2: ec2.describe_store_image_tasks(ImageIds=KNOWN),
            "filters": lambda ec2: _all(ec2, Filters=FILTERS),
            "pages_of_one": lambda ec2: _all(ec2, PaginationConfig={"PageSize": 1, "MaxItems": 5}),
            "dry_run": lambda ec2: ec2.describe_store_image_tasks(DryRun=True),
            "unknown": lambda ec2: ec2.describe_store_image_tasks(ImageIds=unknown_ids(chance)),
        }
        while not ended.is_set():
            try:
                asked[kind](clients[chance.choice(REGIONS)])
                tally[kind]["OK"] += 1
            except ClientError as error:
                tally[kind][error.response["Error"]["Code"]] += 1
            ended.wait(chance.uniform(0, PAUSE))

    kinds = ("describe", "ids", "filters", "pages_of_one", "dry_run", "unknown")
    threads = [
        threading.Thread(target=call_on, args=(kind, random.Random(number)))
        for number, kind in zip(range(count), itertools.cycle(kinds), strict=False)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()
    ended.set()
    for thread in threads:
        thread.join()
    return tally


def _all(ec2: Any, **parameters: Any) -> None:
    for _ in ec2.get_paginator("describe_store_image_tasks").paginate(**parameters):
        pass


if __name__ == "__main__":
    whom, number, *where = sys.argv[1:]
    if whom == "gateway":
        result = asyncio.run(of_gateways(int(number), where))
    else:
        result = of_ec2(int(number), where[0])
    json.dump(result, sys.stdout)
