"""What happens to every call, unary or stream: who calls, deadline, parsing, errors, log line, counting.

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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, Self, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.auth import Presented, presented
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Internal, InvalidRequest
from imagetasks_server.gate import Gate
from imagetasks_server.service import Call, Service
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

SERVICE = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]

Context: TypeAlias = grpc.aio.ServicerContext[bytes, Any]


class Kind(enum.Enum):
    """What a method needs of its caller: a permission for it by name, always; and what else it counts as."""

    CALL = "call"
    """Ends with UNAUTHENTICATED when its credential expires."""
    STREAM = "stream"
    """The same, and counts as an open stream."""
    WATCH = "watch"
    """An open stream that says goodbye itself when its credential expires."""


# A method that is not declared here does not start.
METHODS: Final[Mapping[str, Kind]] = {
    "DescribeStoreImageTasks": Kind.CALL,
    "StreamStoreImageTasks": Kind.STREAM,
    "WatchStoreImageTasks": Kind.WATCH,
    "WaitStoreImageTasks": Kind.CALL,
    "ListTargets": Kind.CALL,
}

Unary: TypeAlias = Callable[[Any, Call], Awaitable[bytes | Message]]
Stream: TypeAlias = Callable[[Any, Call], AsyncGenerator[Message]]


class Boundary:
    """Stands around every call.

    Args:
        clock: Unix seconds.
        gate: Who may come in.
        default_deadline: Seconds a call may take where the caller set no deadline.
    """

    def __init__(self, clock: Clock, gate: Gate, *, default_deadline: float) -> None:
        self._clock = clock
        self._gate = gate
        self._default_deadline = default_deadline
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is under way: server.stop() returns before handlers have cleaned up."""
        await self._idle.wait()

    def handler(self, service: Service) -> grpc.GenericRpcHandler:
        """All methods of the service, each behind the boundary.

        Raises:
            LookupError: The contract has a method of which nobody has said what it needs of its caller.
        """
        check_declared(SERVICE)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            implementation = getattr(service, _snake_case(method.name))
            if method.server_streaming:
                methods[method.name] = grpc.unary_stream_rpc_method_handler(
                    self._stream(method, implementation), response_serializer=_serialize
                )
            else:
                methods[method.name] = grpc.unary_unary_rpc_method_handler(
                    self._unary(method, implementation), response_serializer=_serialize
                )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    def _unary(
        self, method: MethodDescriptor, implementation: Unary
    ) -> Callable[[bytes, Context], Awaitable[Any]]:
        parse = _parser(method)

        async def unary(message: bytes, context: Context) -> bytes | Message:
            with _Record(self, method, context) as record:
                try:
                    async with self._gate.admitted(_reader(context), method.name) as access:
                        # Here a caller's limits are held.
                        call = self._call(context, record, access)
                        return await access.guard(lambda: implementation(parse(message), call), self._clock)
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record.failed(error))

        return unary

    def _stream(
        self, method: MethodDescriptor, implementation: Stream
    ) -> Callable[[bytes, Context], AsyncIterator[Any]]:
        parse, kind = _parser(method), METHODS[method.name]

        async def stream(message: bytes, context: Context) -> AsyncGenerator[Message]:
            with _Record(self, method, context) as record:
                try:
                    async with self._gate.admitted(_reader(context), method.name) as access:
                        # Here a caller's limits are held.
                        call = self._call(context, record, access)
                        async with contextlib.aclosing(implementation(parse(message), call)) as responses:
                            step = functools.partial(anext, responses, None)
                            while (
                                response := await access.guard(
                                    step, self._clock, until_it_expires=kind is not Kind.WATCH
                                )
                            ) is not None:
                                yield response
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record.failed(error))

        return stream

    def _call(self, context: Context, record: "_Record", access: Access) -> Call:
        record.caller = access.caller
        remaining = context.time_remaining()
        seconds = self._default_deadline if remaining is None else remaining
        return Call(self._clock() + seconds, access.caller or record.peer, access)

    def _enter(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()


def check_declared(service: ServiceDescriptor) -> None:
    """Raises LookupError if a method is not in `METHODS`, as the kind that it is."""
    for method in service.methods:
        kind = METHODS.get(method.name)
        if kind is None or (kind is not Kind.CALL) != method.server_streaming:
            raise LookupError(f"boundary.METHODS does not say what {method.name} needs of its caller")


def _reader(context: Context) -> Callable[[], Presented]:
    # Asked of gRPC now, while the call is certainly there.
    metadata, connection = context.invocation_metadata() or (), context.auth_context()
    return lambda: presented(metadata, connection)


class _Record:
    """One call under way: counted while it lasts, logged when it ends, however it ends."""

    def __init__(self, boundary: Boundary, method: MethodDescriptor, context: Context) -> None:
        self._boundary = boundary
        self._method = method
        # Taken now: when a stream's client has left, gRPC may free the call before its handler has ended,
        # and asking the context then reads freed memory.
        self.peer = context.peer()
        self.caller = ""
        self._code = "OK"
        self._reason = ""
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        self._boundary._enter()  # noqa: SLF001  # one idea in two classes
        return self

    # Synchronous: when a client leaves, the first await of a cleanup may be cancelled.
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = "CANCELLED"
        self._boundary._leave()  # noqa: SLF001
        fields = {"reason": self._reason} if self._reason else {}
        if self.caller:
            fields["caller"] = self.caller
        log.info(
            Event.CALL,
            method=self._method.name,
            code=self._code,
            ms=round((time.perf_counter() - self._began) * 1000, 1),
            peer=self.peer,
            **fields,
        )

    def failed(self, error: Exception) -> Error:
        """What the caller is told."""
        if not isinstance(error, Error):
            log.error(Event.CALL_FAILED, method=self._method.name, exc_info=error)
            error = Internal("INTERNAL", "the call failed inside the gateway")
        self._code, self._reason = type(error).code.name, error.reason
        return error


async def _abort(context: Context, error: Error) -> NoReturn:
    details = (("grpc-status-details-bin", error.status().SerializeToString()),)
    await context.abort(type(error).code, error.message, trailing_metadata=details)


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = GetMessageClass(method.input_type)

    def parse(message: bytes) -> Message:
        try:
            return message_class.FromString(message)
        except DecodeError:
            raise InvalidRequest("request", f"is not a {method.input_type.full_name}") from None

    return parse


def _serialize(response: bytes | Message) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
