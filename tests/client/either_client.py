"""Both clients behind one asynchronous face, so that one suite holds for both."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Self

import imagetasks
from imagetasks import blocking
from imagetasks.v1 import store_image_tasks_pb2 as pb

_END = object()

Connect = Callable[..., Any]


class OffLoop:
    """The blocking client, each of its steps in a thread."""

    def __init__(self, client: imagetasks.BlockingClient) -> None:
        self.client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.client.close)

    def describe(self, **arguments: Any) -> "OffLoopListing":
        return OffLoopListing(self.client.describe(**arguments))

    async def dry_run(self, **arguments: Any) -> tuple[pb.TargetOutcome, ...]:
        return await asyncio.to_thread(lambda: self.client.dry_run(**arguments))

    def stream(self, **arguments: Any) -> "OffLoopStream":
        return OffLoopStream(self.client.stream(**arguments))

    def watch(self, **arguments: Any) -> "OffLoopWatch":
        return OffLoopWatch(self.client.watch(**arguments))

    async def wait(self, **arguments: Any) -> pb.WaitStoreImageTasksResponse:
        return await asyncio.to_thread(lambda: self.client.wait(**arguments))

    async def targets(self, **arguments: Any) -> pb.ListTargetsResponse:
        return await asyncio.to_thread(lambda: self.client.targets(**arguments))


class OffLoopListing:
    def __init__(self, listing: blocking.Listing) -> None:
        self._listing = listing

    @property
    def outcomes(self) -> tuple[pb.TargetOutcome, ...]:
        return self._listing.outcomes

    def __aiter__(self) -> AsyncIterator[pb.StoreImageTaskResult]:
        return _stepwise(iter(self._listing))

    def pages(self) -> AsyncGenerator[pb.DescribeStoreImageTasksResponse, None]:
        return _stepwise(self._listing.pages())


class OffLoopStream:
    def __init__(self, stream: blocking.Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[pb.StreamStoreImageTasksResponse]:
        return _stepwise(self._stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await asyncio.to_thread(self._stream.close)


class OffLoopWatch:
    def __init__(self, watch: imagetasks.BlockingWatch) -> None:
        self._watch = watch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> imagetasks.Change:
        change = await asyncio.to_thread(next, self._watch, None)
        if change is None:
            raise StopAsyncIteration
        return change

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await asyncio.to_thread(self._watch.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)


async def _stepwise(iterator: Iterator[Any]) -> AsyncGenerator[Any, None]:
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item


def connect_off_loop(*arguments: Any, **named: Any) -> OffLoop:
    return OffLoop(imagetasks.connect_blocking(*arguments, **named))


CONNECTS: dict[str, Connect] = {"aio": imagetasks.connect, "blocking": connect_off_loop}


async def collect(items: AsyncIterator[Any], seen: list[Any]) -> None:
    """Appends what comes, so that it is known even if an error follows."""
    async for item in items:
        seen.append(item)  # noqa: PERF401 - a comprehension would lose it
