"""What happens to every call, unary or stream: deadline, parsing, errors, the log line, and being counted.

One adapter for each kind, registered for every method of the service's descriptor; a method without a
handler does not start. Handlers get the parsed request and raise `Error`; whatever else they raise is
INTERNAL with a fixed text, for grpc.aio would send the exception's own text to the caller.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn, Self, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Internal, InvalidRequest
from imagetasks_server.limits import Admission, Limits, Quota
from imagetasks_server.service import Call, Service
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

SERVICE = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]

# Seconds a stream gets, once it is too old, to say so to a client that reads.
STUCK_SECONDS: Final = 30.0
# Unary, but it lasts and mostly rests: it counts as a stream.
LASTING: Final = frozenset({"WaitStoreImageTasks"})

Context: TypeAlias = grpc.aio.ServicerContext[bytes, Any]
Unary: TypeAlias = Callable[[Any, Call], Awaitable[bytes | Message]]
Stream: TypeAlias = Callable[[Any, Call], AsyncGenerator[Message]]


class Boundary:
    """Stands around every call.

    Args:
        clock: Unix seconds.
        limits: Lets calls in.
        default_quota: What a caller may.
        default_deadline: Seconds a call may take where the caller set no deadline.
        longest: Seconds that any call may take.
    """

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        *,
        default_quota: Quota,
        default_deadline: float,
        longest: float,
    ) -> None:
        self._clock = clock
        self.limits = limits
        self.default_quota = default_quota
        self._default_deadline = default_deadline
        self._longest = longest
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is under way: server.stop() returns before handlers have cleaned up."""
        await self._idle.wait()

    def handler(self, service: Service) -> grpc.GenericRpcHandler:
        """All methods of the service, each behind the boundary."""
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
        lasting = method.name in LASTING

        async def unary(message: bytes, context: Context) -> bytes | Message:
            with _Record(self, method, context) as record:
                try:
                    with self._admitted(record, lasting=lasting):
                        return await implementation(parse(message), self._call(context, record))
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record.failed(error))

        return unary

    def _stream(
        self, method: MethodDescriptor, implementation: Stream
    ) -> Callable[[bytes, Context], AsyncIterator[Any]]:
        parse = _parser(method)

        async def stream(message: bytes, context: Context) -> AsyncGenerator[Message]:
            with _Record(self, method, context) as record:
                try:
                    with self._admitted(record, lasting=True), _ended_after(self._longest + STUCK_SECONDS):
                        async with contextlib.aclosing(
                            implementation(parse(message), self._call(context, record))
                        ) as responses:
                            async for response in responses:
                                yield response
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record.failed(error))

        return stream

    def _admitted(self, record: "_Record", *, lasting: bool) -> Admission:
        return self.limits.admit(_host(record.peer), self.default_quota, streaming=lasting)

    def _call(self, context: Context, record: "_Record") -> Call:
        remaining = context.time_remaining()
        seconds = self._default_deadline if remaining is None else remaining
        return Call(self._clock() + min(seconds, self._longest), record.peer)

    def _enter(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()


class _Record:
    """One call under way: counted while it lasts, logged when it ends, however it ends."""

    def __init__(self, boundary: Boundary, method: MethodDescriptor, context: Context) -> None:
        self._boundary = boundary
        self._method = method
        # Taken now: when a stream's client has left, gRPC may free the call before its handler has ended,
        # and asking the context then reads freed memory.
        self.peer = context.peer()
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


def _serialize(response: bytes | Message) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
