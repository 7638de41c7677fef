"""A watch for an application: it opens calls, reads them, and does what `watching` says next."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio

from imagetasks import errors
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watching import Change, Place, Stale, Watched

# Makes a call of a watch: one that gRPC's asyncio or its blocking stub returns.
Opens: TypeAlias = Callable[[pb.WatchStoreImageTasksRequest], Any]


class Held:
    """What both watches show of what they hold."""

    def __init__(self, opens: Opens, selector: pb.TaskSelector) -> None:
        self._opens = opens
        self._call: Any = None
        self._watched = Watched(selector)
        self._ready: deque[Change] = deque()
        self._closed = False
        self._pause = 0.0
        self._last_error: errors.Error | None = None

    @property
    def tasks(self) -> Mapping[str, pb.StoreImageTaskResult]:
        """The tasks held, by task_id. A group of changes is applied at once, before its first is iterated."""
        return self._watched.tasks

    @property
    def targets(self) -> frozenset[Place]:
        """Account and Region of each target that is followed."""
        return self._watched.targets

    @property
    def covered(self) -> frozenset[Place]:
        """Account and Region of each target whose tasks are held in full."""
        return self._watched.covered

    @property
    def stale(self) -> Mapping[Place, Stale]:
        """Targets that cannot be read now, by account and Region."""
        return self._watched.stale

    @property
    def is_live(self) -> bool:
        """Whether it is connected; if not, it is about to be again."""
        return self._watched.is_live

    @property
    def is_caught_up(self) -> bool:
        """Whether it is connected and has heard of every target."""
        return self._watched.is_caught_up

    @property
    def last_error(self) -> errors.Error | None:
        """What the newest interruption was for; None: the gateway closed the stream, or fell silent."""
        return self._last_error

    def _received(self, message: pb.WatchStoreImageTasksResponse) -> bool:
        """Takes a message; whether the call goes on."""
        self._ready.extend(self._watched.received(message, time.monotonic()))
        return message.WhichOneof("event") != "closing"

    def _taken(self) -> list[Change]:
        changes = list(self._ready)
        self._ready.clear()
        return changes

    def _interrupted(self, error: errors.Error | None) -> None:
        self._last_error = error
        try:
            self._pause = self._watched.interrupted(error, time.monotonic())
        except errors.Error:
            self._closed = True
            raise


class Watch(Held):
    """The answer to `watch`: an asynchronous iterator over changes.

    Leaving `async with` or `aclose()` ends it at the gateway, and it yields nothing more. Cancelling the task
    that iterates hangs up too; whoever iterates again goes on where that was.
    """

    def __init__(self, opens: Opens, selector: pb.TaskSelector) -> None:
        super().__init__(opens, selector)
        self._left = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._ready:
            if not await self._step():
                raise StopAsyncIteration
        return self._ready.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the watch; the gateway stops working on it. May be called again, also while it is iterated."""
        self._closed = True
        self._ready.clear()
        self._left.set()
        self._hang_up()

    async def heard(self) -> list[Change] | None:
        """Waits for the next message or interruption; returns what it changes, perhaps nothing.

        None: the watch is closed.
        """
        return self._taken() if self._ready or await self._step() else None

    async def _step(self) -> bool:
        """One message or one interruption; False when closed."""
        if self._call is None:
            await self._wait_a_little()
        if self._closed:
            return False
        error = None
        try:
            if self._call is None:
                self._call = self._opens(self._watched.request)
            async with asyncio.timeout(self._watched.silence):
                message = await self._call.read()
            if isinstance(message, pb.WatchStoreImageTasksResponse) and self._received(message):
                return True
        except TimeoutError:
            pass
        except grpc.RpcError as failure:
            error = errors.from_call(failure)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                self._hang_up()
                self._interrupted(None)
                # Not the gateway's fault.
                self._pause = 0.0
                raise
        if self._closed:
            return False
        self._hang_up()
        self._interrupted(error)
        return True

    async def _wait_a_little(self) -> None:
        if self._pause:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._left.wait()
        self._pause = 0.0

    def _hang_up(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


class BlockingWatch(Held):
    """The answer to `watch`: an iterator over changes.

    Leaving `with` or `close()`, from any thread, ends it at the gateway, and it yields nothing more.
    """

    def __init__(self, opens: Opens, selector: pb.TaskSelector) -> None:
        super().__init__(opens, selector)
        self._left = threading.Event()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        while not self._ready:
            if not self._step():
                raise StopIteration
        return self._ready.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch; the gateway stops working on it. May be called again, from any thread."""
        self._closed = True
        self._left.set()
        call = self._call
        if call is not None:
            call.cancel()

    def heard(self) -> list[Change] | None:
        """Waits for the next message or interruption; returns what it changes, perhaps nothing.

        None: the watch is closed.
        """
        return self._taken() if self._ready or self._step() else None

    def _step(self) -> bool:
        """One message or one interruption; False when closed."""
        if self._call is None and not self._closed:
            self._left.wait(self._pause)
        if self._closed:
            return False
        if self._call is None:
            self._call = self._opens(self._watched.request)
        if self._closed:  # meanwhile, by another thread that saw no call to cancel
            self._call.cancel()
            return False
        # A blocking read has no timeout of its own.
        silence = threading.Timer(self._watched.silence, self._call.cancel)
        silence.daemon = True
        silence.start()
        error = None
        try:
            message = next(self._call, None)
        except grpc.RpcError as failure:
            message = None
            error = errors.from_call(failure)
        finally:
            silence.cancel()
        if self._closed:
            return False
        if message is not None and self._received(message):
            return True
        self._call.cancel()
        self._call = None
        self._interrupted(error)
        return True
