"""What happens to every call, unary or stream: who calls, deadline, parsing, errors, and its record.

Whether it may come in is decided first, and again while it lasts. One adapter for each kind, registered for
every method of the service's descriptor; a method without a handler, or of which nobody has said what it
needs of its caller, does not start. Handlers get the parsed request and raise `Error`; whatever else they
raise is INTERNAL with a fixed text, for grpc.aio would send the exception's own text to the caller.
"""

import asyncio
import contextlib
import enum
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from imagetasks_server.access import Access
from imagetasks_server.arrivals import Arrivals
from imagetasks_server.clock import Clock
from imagetasks_server.contract import SERVICE
from imagetasks_server.errors import InvalidRequest
from imagetasks_server.gate import Decision, Gate, Shown
from imagetasks_server.limits import Limits
from imagetasks_server.record import Context, Record, Records
from imagetasks_server.repeats import Again
from imagetasks_server.service import Call, Service

# Seconds a stream gets, once it is too old, to say so to a client that reads.
STUCK_SECONDS: Final = 30.0


class Kind(enum.Enum):
    """What a method needs of its caller: a permission for it by name, always; and what else it counts as."""

    CALL = "call"
    """Ends with UNAUTHENTICATED when its credential expires."""
    WAIT = "wait"
    """The same; it lasts and mostly rests, so it counts as an open stream."""
    STREAM = "stream"
    """The same as a wait, with many messages."""
    WATCH = "watch"
    """An open stream that says goodbye itself when its credential expires, and looks itself whether its
    access has ended: telling a thousand watchers something is to cost next to nothing."""


# A method that is not declared here does not start.
METHODS: Final[Mapping[str, Kind]] = {
    "DescribeStoreImageTasks": Kind.CALL,
    "StreamStoreImageTasks": Kind.STREAM,
    "WatchStoreImageTasks": Kind.WATCH,
    "WaitStoreImageTasks": Kind.WAIT,
    "ListTargets": Kind.CALL,
}


_NO_CONNECTION: Final[Mapping[str, Any]] = {}

Unary: TypeAlias = Callable[[Any, Call], Awaitable[bytes | Message]]
Stream: TypeAlias = Callable[[Any, Call], AsyncGenerator[Message]]


class Boundary:
    """Stands around every call.

    Args:
        clock: Unix seconds.
        records: Of the calls under way.
        gate: Who may come in.
        limits: Lets them in.
        arrivals: Takes in what they ask.
        default_deadline: Seconds a call may take where the caller set no deadline.
        longest: Seconds that any call may take.
    """

    def __init__(
        self,
        clock: Clock,
        records: Records,
        gate: Gate,
        limits: Limits,
        arrivals: Arrivals,
        *,
        default_deadline: float,
        longest: float,
    ) -> None:
        self._clock = clock
        self.limits = limits
        self._gate = gate
        self._arrivals = arrivals
        self._default_deadline = default_deadline
        self._longest = longest
        self._records = records
        # Kept: before Python 3.12 it is a call to the system to find it out.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def in_flight(self) -> int:
        """The calls under way."""
        return self._records.in_flight

    async def idle(self) -> None:
        """Wait until no call is under way: server.stop() returns before handlers have cleaned up."""
        await self._records.idle()

    def handlers(self, service: Service) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """All methods of the service by name, each behind the boundary.

        Raises:
            LookupError: The contract has a method of which nobody has said what it needs of its caller.
        """
        check_declared(SERVICE)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            implementation = getattr(service, _snake_case(method.name))
            if method.server_streaming:
                methods[method.name] = grpc.stream_stream_rpc_method_handler(
                    self._stream(method, implementation), response_serializer=_Serializer()
                )
            else:
                methods[method.name] = grpc.stream_unary_rpc_method_handler(
                    self._unary(method, implementation, service.again.get(method.name))
                )
        return methods

    def _unary(
        self, method: MethodDescriptor, implementation: Unary, again: Again | None
    ) -> Callable[[object, Context], Awaitable[bytes]]:
        name, parse, kind = method.name, _parser(method), METHODS[method.name]

        async def unary(_: object, context: Context) -> bytes:
            with Record(self._records, name, context) as record:
                try:
                    message, decision, shown = await self._let_in(context, record, name, kind)
                    # What can be said at once needs nothing of what follows.
                    if again and (answer := again(message, decision.permission, record.tally)):
                        return answer
                    record.bind()
                    with self._gate.stay(decision, shown, name) as access:
                        call = self._call(context, record, access, message)
                        access.end_when_it_expires(self._clock)
                        response = await access.guard(lambda: implementation(parse(message), call))
                    return response if isinstance(response, bytes) else response.SerializeToString()
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record, error)

        return unary

    def _stream(
        self, method: MethodDescriptor, implementation: Stream
    ) -> Callable[[object, Context], AsyncIterator[Any]]:
        name, parse, kind = method.name, _parser(method), METHODS[method.name]

        async def stream(_: object, context: Context) -> AsyncGenerator[Message]:
            with Record(self._records, name, context) as record:
                try:
                    record.bind()
                    message, decision, shown = await self._let_in(context, record, name, kind)
                    with self._gate.stay(decision, shown, name) as access:
                        call = self._call(context, record, access)
                        with _ended_after(self._longest + STUCK_SECONDS):
                            responses = implementation(parse(message), call)
                            # It may last for hours.
                            del message
                            # A watch says goodbye itself.
                            if kind is not Kind.WATCH:
                                access.end_when_it_expires(self._clock)
                                responses = _guarded(responses, access)
                            async with contextlib.aclosing(responses):
                                async for response in responses:
                                    record.sent()
                                    yield response
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record, error)

        return stream

    async def _let_in(
        self, context: Context, record: Record, name: str, kind: Kind
    ) -> tuple[bytes, Decision, Shown]:
        """Wait until it is known who calls, give the call its place, and wait for what it asks.

        It holds its place until gRPC is done with it: until the answer has been sent, and not only given.
        """
        # Asked of gRPC now, while the call is certainly there.
        connection = context.auth_context() if self._gate.asks_for_certificates else _NO_CONNECTION
        shown = record.metadata, connection
        decision = self._gate.known(record.metadata, name)
        if decision is None:
            record.bind()
            with self.limits.undecided():
                decision = await self._gate.decided(*shown, name)
        record.identified(decision.caller, decision.permission.caller)
        place = self.limits.admit(
            decision.caller or _host(record.peer),
            decision.permission.quota,
            streaming=kind is not Kind.CALL,
        )
        # The task that this is. What the context would call makes a cycle with it, for the collector to find.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        task.add_done_callback(place.leave)
        message = await self._arrivals.message(context)
        if not self._gate.stands(decision):
            decision = await self._gate.decided(*shown, name)
        return message, decision, shown

    def _call(self, context: Context, record: Record, access: Access, message: bytes | None = None) -> Call:
        now, remaining = self._clock(), context.time_remaining()
        longest = self._longest if remaining is None else min(remaining, self._longest)
        seconds = min(self._default_deadline, longest) if remaining is None else longest
        return Call(
            now + seconds,
            access.caller or record.peer,
            record.tally,
            access,
            message,
            longest=now + longest,
        )


def check_declared(service: ServiceDescriptor) -> None:
    """Raises LookupError if a method is not in `METHODS`, as the kind that it is."""
    for method in service.methods:
        kind = METHODS.get(method.name)
        if kind is None or (kind in {Kind.STREAM, Kind.WATCH}) != method.server_streaming:
            raise LookupError(f"boundary.METHODS does not say what {method.name} needs of its caller")


async def _guarded(responses: AsyncGenerator[Message], access: Access) -> AsyncGenerator[Message]:
    async with contextlib.aclosing(responses):
        step = functools.partial(anext, responses, None)
        while (response := await access.guard(step)) is not None:
            yield response


async def _abort(context: Context, record: Record, error: Exception) -> NoReturn:
    told = record.failed(error)
    details = ("grpc-status-details-bin", told.status().SerializeToString())
    await context.abort(type(told).code, told.message, trailing_metadata=(record.named, details))


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = GetMessageClass(method.input_type)

    def parse(message: bytes) -> Message:
        try:
            return message_class.FromString(message)
        except DecodeError:
            raise InvalidRequest("request", f"is not a {method.input_type.full_name}") from None

    return parse


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Cancel this call if it still lasts then: whoever does not read cannot be told that it is over."""
    task = asyncio.current_task()
    assert task is not None
    ending = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        yield
    finally:
        ending.cancel()


def _host(peer: str) -> str:
    """Who calls, as long as nothing better is known: gRPC's name of the peer without the port."""
    return peer if peer.startswith("unix:") else peer.rpartition(":")[0]


class _Serializer:
    """Turns responses into bytes; the last one's are kept, for watches that are told the same message."""

    def __init__(self) -> None:
        self._last: Message | None = None
        self._bytes = b""

    def __call__(self, response: Message) -> bytes:
        if response is not self._last:
            self._last, self._bytes = response, response.SerializeToString()
        return self._bytes


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
