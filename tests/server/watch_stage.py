"""A gateway over two Regions on virtual time, watched below its boundary, and what a watcher holds."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fake_ec2 import FakeWorld
from virtual import VirtualClock, run

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import assembly
from imagetasks_server.access import Access
from imagetasks_server.config import Settings
from imagetasks_server.service import Call

AMPLE = {"capacity": 1e6, "refill": 1e6, "initial": 1e6}
REGIONS = ("eu-central-1", "us-east-1")
FOREVER = 1e15
Event = pb.WatchStoreImageTasksResponse


class Watcher:
    """One watch, and the state that its client would hold."""

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events
        self.seen: list[Event] = []
        self.held: dict[str, pb.StoreImageTaskResult] = {}
        self.token = ""
        # Kept while nobody waits: cancelling it would end the watch.
        self._coming: asyncio.Future[Event] | None = None

    async def next(self, kind: str | None = None) -> Event:
        """The next event, or the next of a kind."""
        while True:
            self._coming = self._coming or asyncio.ensure_future(anext(self._events))
            coming = await asyncio.shield(self._coming)
            self._coming = None
            self._take(coming)
            if kind is None or coming.WhichOneof("event") == kind:
                return coming

    async def during(self, seconds: float) -> list[Event]:
        """What comes within so long."""
        before = len(self.seen)
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(seconds):
                while True:
                    await self.next()
        return self.seen[before:]

    async def close(self) -> None:
        """The client leaves."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait([self._coming])
        await self._events.aclose()

    def _take(self, event: Event) -> None:
        self.seen.append(event)
        if event.HasField("resume_token"):
            self.token = event.resume_token
        if event.HasField("reset"):
            gone = {(target.account, target.region) for target in event.reset.targets}
            kept = {k: t for k, t in self.held.items() if gone and (t.account, t.region) not in gone}
            self.held = kept
        for change in event.changes.changes:
            known = change.task.task_id in self.held
            assert known == (change.type != pb.TaskChange.TYPE_ADDED)
            if change.type == pb.TaskChange.TYPE_REMOVED:
                del self.held[change.task.task_id]
            else:
                self.held[change.task.task_id] = change.task

    def percentages(self) -> list[int]:
        return sorted(task.progress_percentage for task in self.held.values())


class Stage:
    """A gateway over two Regions, on virtual time."""

    def __init__(self, clock: VirtualClock, **settings: Any) -> None:
        self.clock = clock
        self.world = FakeWorld(clock, {"main": REGIONS})
        self.settings = {"accounts": [{"name": "main"}], "budget": AMPLE, **settings}
        self.restart()
        self._open = contextlib.AsyncExitStack()

    def restart(self) -> None:
        self.gateway = assembly.assemble(Settings(**self.settings), self.world.accounts, self.clock)

    async def watch(
        self, *, resume: str = "", require: bool = False, access: Access | None = None, **selector: Any
    ) -> Watcher:
        request = pb.WatchStoreImageTasksRequest(
            selector=pb.TaskSelector(**selector), resume_token=resume, require_resume=require
        )
        events = self.gateway.service.watch_store_image_tasks(
            request, Call(FOREVER, access=access or Access())
        )
        watcher = Watcher(events)
        self._open.push_async_callback(watcher.close)
        return watcher

    async def wait(
        self, seconds: int = 1000, *, appear: bool = False, access: Access | None = None, **selector: Any
    ) -> Any:
        request = pb.WaitStoreImageTasksRequest(
            selector=pb.TaskSelector(**selector), wait_for_appearance=appear
        )
        request.timeout.FromSeconds(seconds)
        return await self.gateway.service.wait_store_image_tasks(
            request, Call(FOREVER, access=access or Access())
        )

    async def close(self) -> None:
        await self._open.aclose()
        await self.gateway.close()


def staged(scenario: Callable[[Stage], Awaitable[None]], **settings: Any) -> None:
    async def with_stage(clock: VirtualClock) -> None:
        stage = Stage(clock, **settings)
        try:
            await scenario(stage)
        finally:
            await stage.close()

    run(with_stage)


@contextlib.contextmanager
def drawn_from(seed: int | str) -> Iterator[None]:
    """What gateways draw that are assembled in this context, as jitter, is the same each time."""
    drawn = SimpleNamespace(Random=functools.partial(random.Random, seed))
    with mock.patch.object(assembly, "random", drawn):
        yield


def kinds(events: list[Event]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]
