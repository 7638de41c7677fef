"""One call under way: the place where a call is counted, timed and logged, however it ends."""

import asyncio
import time
from typing import Any, Self, TypeAlias

import grpc
import structlog

from imagetasks_server.errors import Error, Internal
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

Context: TypeAlias = grpc.aio.ServicerContext[bytes, Any]


class Records:
    """The calls under way.

    Attributes:
        in_flight: How many.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def of(self, method: str, context: Context) -> "Record":
        """The record of a call that begins. It is entered, and left when the call ends."""
        return Record(self, method, context)

    def enter(self) -> None:
        """Count a call."""
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """A call has ended."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()


class Record:
    """One call under way: counted while it lasts, logged when it ends, however it ends.

    Attributes:
        method: The method's bare name.
        peer: The caller's address, as gRPC writes it.
        caller: Who calls. The peer, until it is known who that is.
    """

    def __init__(self, records: Records, method: str, context: Context) -> None:
        self.method = method
        # Taken now: when a stream's client has left, gRPC may free the call before its handler has ended,
        # and asking the context then reads freed memory.
        self.peer = self.caller = context.peer()
        self._records = records
        self._code = "OK"
        self._reason = ""
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        self._records.enter()
        return self

    # Synchronous: when a client leaves, the first await of a cleanup may be cancelled.
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = "CANCELLED"
        self._records.leave()
        fields = {"reason": self._reason} if self._reason else {}
        log.info(
            Event.CALL,
            method=self.method,
            code=self._code,
            ms=round((time.perf_counter() - self._began) * 1000, 1),
            peer=self.peer,
            **fields,
        )

    def failed(self, error: Exception) -> Error:
        """What the caller is told."""
        if not isinstance(error, Error):
            log.error(Event.CALL_FAILED, method=self.method, exc_info=error)
            error = Internal("INTERNAL", "the call failed inside the gateway")
        self._code, self._reason = type(error).code.name, error.reason
        return error
