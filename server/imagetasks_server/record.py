"""One call under way: the place where a call is counted, timed, traced and logged, however it ends."""

import asyncio
import contextvars
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import grpc
import structlog

from imagetasks_server.errors import Error, Internal
from imagetasks_server.metrics import OTHER, Metrics
from imagetasks_server.tally import Tally
from imagetasks_server.telemetry import Event

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

log = structlog.get_logger()

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Context: TypeAlias = grpc.aio.ServicerContext[bytes, Any]

REQUEST_ID: Final = "x-request-id"
# Seconds for which a process collects ended calls. Whoever kills it loses no more than their lines.
TOGETHER: Final = 0.02
# What may stand in a log as it came.
_SANE_ID = re.compile(r"[A-Za-z0-9_.:+/=-]{1,64}")

# They last as long as the caller likes: it tells nothing how long they took. Their first message does.
_ENDLESS: Final = frozenset({"WatchStoreImageTasks"})

# Seeded by the system; asking it each time would cost more.
_getrandbits: Final = random.Random().getrandbits  # noqa: S311  # names a call, guards nothing


class Records:
    """The calls under way.

    What has ended is counted and logged a moment later, with all else that has ended until then: what is done
    for many at once costs a fraction of what it costs between the steps of a call.

    Args:
        service: The service's full name.
        metrics: Count them.
        tracer: Traces them, if anybody does.
        together: Seconds for which ended calls are collected; 0: each is told at once.

    Attributes:
        in_flight: How many.
        under_way: How many, by method.
        begun: How many there have been.
    """

    def __init__(
        self, service: str, metrics: Metrics, tracer: "Tracer | None" = None, *, together: float = 0.0
    ) -> None:
        self.service = service
        self.metrics = metrics
        self.tracer = tracer
        self.in_flight = 0
        self.under_way: Counter[str] = Counter()
        self.begun = 0
        self._together = together
        self._ended: list[Record] = []
        self._idle: asyncio.Event | None = None
        # Bound once: the lazy one is bound anew for each line.
        self._log = log.bind()

    def left(self, record: "Record") -> None:
        """A call has ended."""
        self.under_way[record.method] -= 1
        self.in_flight -= 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
        self._ended.append(record)
        if not self._together:
            self.tell()
        elif len(self._ended) == 1:
            loop = asyncio.get_running_loop()
            loop.call_later(self._together, self.tell, context=contextvars.Context())

    def tell(self) -> None:
        """Count and log what has ended."""
        ended, self._ended = self._ended, []
        for record in ended:
            record.count(self.metrics)
            self._log.info(Event.CALL, **record.fields())

    async def idle(self) -> None:
        """Wait until no call is under way, and all have been told of."""
        while self.in_flight:
            self._idle = asyncio.Event()
            await self._idle.wait()
        self.tell()


class Record:
    """One call under way: counted while it lasts, told of when it ends, however it ends.

    Args:
        records: All that are under way.
        method: The method's bare name.
        context: gRPC's.

    Attributes:
        method: The method's bare name.
        peer: The caller's address, as gRPC writes it.
        request_id: What the caller may quote: its own, if that is short and plain, else a new one. It is
            in the log lines of the call, and in its trailing metadata.
        named: The same as trailing metadata: what every call ends with.
        metadata: What the caller sent along.
        tally: What it is about and what it costs.
        caller: Who calls. The peer, until it is known who that is.
    """

    __slots__ = (
        "_began",
        "_code",
        "_ended_at",
        "_is_timed",
        "_reason",
        "_records",
        "_seconds",
        "caller",
        "metadata",
        "method",
        "named",
        "peer",
        "request_id",
        "tally",
    )

    def __init__(self, records: Records, method: str, context: Context) -> None:
        self.method = method
        # Taken now: when a stream's client has left, gRPC may free the call before its handler has ended,
        # and asking the context then reads freed memory.
        self.peer = self.caller = context.peer()
        self.tally = Tally()
        self._records = records
        self._code = "OK"
        self._reason = ""
        self._began = time.perf_counter()
        self._is_timed = False
        self.metadata: Metadata = context.invocation_metadata() or ()  # type: ignore[assignment]
        self.request_id = _request_id(self.metadata)
        self.named = REQUEST_ID, self.request_id
        context.set_trailing_metadata((self.named,))
        if records.tracer is not None:
            self.tally.span = records.tracer.begin(records.service, method, _trace_of(self.metadata))

    def identified(self, caller: str, entry: str) -> None:
        """It is known who calls; both are empty where nobody is asked.

        Args:
            caller: Whom the log names.
            entry: The caller's name in the configuration: whom the metrics name.
        """
        if caller:
            self.caller = caller
        if entry:
            self.tally.payer = entry if entry in self._records.metrics.callers else OTHER

    def bind(self) -> None:
        """Have the request id told by all that is logged from now on, by whomever."""
        # gRPC runs each call in a task of its own, so nothing must be unbound.
        structlog.contextvars.bind_contextvars(request_id=self.request_id)

    def __enter__(self) -> Self:
        records = self._records
        records.begun += 1
        records.in_flight += 1
        records.under_way[self.method] += 1
        return self

    # Synchronous: when a client leaves, the first await of a cleanup may be cancelled.
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = "CANCELLED"
        self._ended_at = time.time()
        self._seconds = time.perf_counter() - self._began
        if self.tally.span is not None and not self._is_timed:
            self._trace()
        self._records.left(self)

    def sent(self) -> None:
        """A stream's message goes out."""
        self.tally.messages += 1
        self._records.metrics.message_sent(self.method)()
        if self.method in _ENDLESS and not self._is_timed:
            self._is_timed = True
            self._records.metrics.call_seconds(self.method)(time.perf_counter() - self._began)
            self._trace()

    def failed(self, error: Exception) -> Error:
        """What the caller is told."""
        if not isinstance(error, Error):
            log.error(Event.CALL_FAILED, method=self.method, request_id=self.request_id, exc_info=error)
            error = Internal("INTERNAL", "the call failed inside the gateway")
        self._code, self._reason = type(error).code.name, error.reason
        return error

    def _trace(self) -> None:
        span, tracer = self.tally.span, self._records.tracer
        if span is not None and tracer is not None:
            tracer.end(span, self._code, self._reason, self.request_id)

    def count(self, metrics: Metrics) -> None:
        """Count it, when it has ended."""
        tally = self.tally
        if not self._is_timed:
            metrics.call_seconds(self.method)(self._seconds)
        metrics.call_ended(self.method, self._code)()
        for how, targets in tally.answers.items():
            metrics.answered(tally.payer, how)(targets)

    def fields(self) -> dict[str, object]:
        """What the log tells of it, when it has ended."""
        tally = self.tally
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(self._ended_at, UTC),
            "request_id": self.request_id,
            "method": self.method,
            "code": self._code,
            "ms": round(self._seconds * 1000, 1),
            "peer": self.peer,
            "ec2_calls": tally.calls,
        }
        if self.caller != self.peer:
            fields["caller"] = self.caller
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


def _request_id(metadata: Any) -> str:
    for key, value in metadata:
        if key == REQUEST_ID and _SANE_ID.fullmatch(value):
            return str(value)
    return f"{_getrandbits(64):016x}"


def _trace_of(metadata: Any) -> dict[str, str]:
    """What a call says of the trace that it belongs to."""
    return {key: value for key, value in metadata if key in {"traceparent", "tracestate"}}
