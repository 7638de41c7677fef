"""One call under way: the place where a call is counted, timed, traced and logged, however it ends."""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import grpc
import structlog

from imagetasks_server.errors import Error, Internal
from imagetasks_server.metrics import Metrics
from imagetasks_server.tally import Tally
from imagetasks_server.telemetry import Event

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

log = structlog.get_logger()

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Context: TypeAlias = grpc.aio.ServicerContext[bytes, Any]

REQUEST_ID: Final = "x-request-id"
# What may stand in a log as it came.
_SANE_ID = re.compile(r"[A-Za-z0-9_.:+/=-]{1,64}")

# They last as long as the caller likes: it tells nothing how long they took. Their first message does.
_ENDLESS: Final = frozenset({"WatchStoreImageTasks"})

# Seeded by the system; asking it each time would cost more.
_getrandbits: Final = random.Random().getrandbits  # noqa: S311  # names a call, guards nothing


class Records:
    """The calls under way.

    Args:
        service: The service's full name.
        metrics: Count them.
        tracer: Traces them, if anybody does.

    Attributes:
        under_way: How many, by method.
        begun: How many there have been.
    """

    def __init__(self, service: str, metrics: Metrics, tracer: "Tracer | None" = None) -> None:
        self.service = service
        self.metrics = metrics
        self.tracer = tracer
        self.under_way: dict[str, int] = {}
        self.begun = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many."""
        return sum(self.under_way.values())

    def of(self, method: str, context: Context) -> "Record":
        """The record of a call that begins. It is entered, and left when the call ends."""
        return Record(self, method, context)

    def enter(self, method: str) -> None:
        """Count a call."""
        self.begun += 1
        self.under_way[method] = self.under_way.get(method, 0) + 1
        self._idle.clear()

    def leave(self, method: str) -> None:
        """A call has ended."""
        self.under_way[method] -= 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()


class Record:
    """One call under way: counted while it lasts, told of when it ends, however it ends.

    Attributes:
        method: The method's bare name.
        peer: The caller's address, as gRPC writes it.
        request_id: What the caller may quote: its own, if that is short and plain, else a new one. It is
            in the log lines of the call, and in its trailing metadata.
        metadata: What the caller sent along.
        tally: What it is about and what it costs.
    """

    def __init__(self, records: Records, method: str, context: Context) -> None:
        self.method = method
        # Taken now: when a stream's client has left, gRPC may free the call before its handler has ended,
        # and asking the context then reads freed memory.
        self.peer = self._caller = context.peer()
        self.tally = Tally()
        self._records = records
        self._code = "OK"
        self._reason = ""
        self._began = time.perf_counter()
        self._is_timed = False
        self.metadata: Metadata = tuple(context.invocation_metadata() or ())
        self.request_id, trace = _read(self.metadata)
        context.set_trailing_metadata(self.trailing_metadata)
        if records.tracer is not None:
            self.tally.span = records.tracer.begin(records.service, method, trace)

    @property
    def caller(self) -> str:
        """Who calls. The peer, until it is known who that is."""
        return self._caller

    def identified(self, caller: str, entry: str) -> None:
        """It is known who calls; both are empty where nobody is asked.

        Args:
            caller: Whom the log names.
            entry: The caller's name in the configuration: whom the metrics name.
        """
        if caller:
            self._caller = caller
        if entry:
            self.tally.payer = self._records.metrics.label_of(entry)

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call ends with."""
        return ((REQUEST_ID, self.request_id),)

    def __enter__(self) -> Self:
        self._records.enter(self.method)
        # gRPC runs each call in a task of its own, so nothing must be unbound.
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        return self

    # Synchronous: when a client leaves, the first await of a cleanup may be cancelled.
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = "CANCELLED"
        self._records.leave(self.method)
        if not self._is_timed:
            self._timed()
        metrics, tally = self._records.metrics, self.tally
        metrics.call_ended(self.method, self._code)()
        for how, targets in tally.answers.items():
            metrics.answered(tally.payer, how)(targets)
        log.info(Event.CALL, **self._fields())

    def sent(self) -> None:
        """A stream's message goes out."""
        self.tally.messages += 1
        self._records.metrics.message_sent(self.method)()
        if self.method in _ENDLESS and not self._is_timed:
            self._timed()

    def failed(self, error: Exception) -> Error:
        """What the caller is told."""
        if not isinstance(error, Error):
            log.error(Event.CALL_FAILED, method=self.method, request_id=self.request_id, exc_info=error)
            error = Internal("INTERNAL", "the call failed inside the gateway")
        self._code, self._reason = type(error).code.name, error.reason
        return error

    def _timed(self) -> None:
        self._is_timed = True
        self._records.metrics.call_seconds(self.method)(time.perf_counter() - self._began)
        span, tracer = self.tally.span, self._records.tracer
        if span is not None and tracer is not None:
            tracer.end(span, self._code, self._reason, self.request_id)

    def _fields(self) -> dict[str, object]:
        tally = self.tally
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method,
            "code": self._code,
            "ms": round((time.perf_counter() - self._began) * 1000, 1),
            "peer": self.peer,
            "ec2_calls": tally.calls,
        }
        if self._caller != self.peer:
            fields["caller"] = self._caller
        if self._reason:
            fields["reason"] = self._reason
        if tally.targets is not None:
            fields["targets"] = tally.targets
        if tally.names:
            fields["names"] = tally.names
        if tally.answers:
            fields["answers"] = tally.answers
        if tally.messages:
            fields["messages"] = tally.messages
        if tally.changes:
            fields["changes"] = tally.changes
        if tally.lag is not None:
            fields["lag_ms"] = round(tally.lag * 1000, 1)
        if tally.span is not None:
            fields["trace_id"] = format(tally.span.get_span_context().trace_id, "032x")
        return fields


def _read(metadata: Any) -> tuple[str, dict[str, str]]:
    """A call's request id, and what it says of a trace."""
    request_id, trace = "", {}
    for key, value in metadata:
        if key == REQUEST_ID:
            if not request_id and _SANE_ID.fullmatch(value):
                request_id = value
        elif key in {"traceparent", "tracestate"}:
            trace[key] = value
    return request_id or f"{_getrandbits(64):016x}", trace
