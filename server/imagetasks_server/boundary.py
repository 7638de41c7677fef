"""What happens to every call, unary or stream: deadline, parsing, errors, and its record.

One adapter for each kind, registered for every method of the service's descriptor; a method without a
handler does not start. Handlers get the parsed request and raise `Error`; whatever else they raise is
INTERNAL with a fixed text, for grpc.aio would send the exception's own text to the caller.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock
from imagetasks_server.errors import InvalidRequest
from imagetasks_server.limits import Admission, Limits, Quota
from imagetasks_server.record import Context, Record, Records
from imagetasks_server.service import Call, Service

SERVICE = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]

# Seconds a stream gets, once it is too old, to say so to a client that reads.
STUCK_SECONDS: Final = 30.0
# Unary, but it lasts and mostly rests: it counts as a stream.
LASTING: Final = frozenset({"WaitStoreImageTasks"})

Unary: TypeAlias = Callable[[Any, Call], Awaitable[bytes | Message]]
Stream: TypeAlias = Callable[[Any, Call], AsyncGenerator[Message]]


class Boundary:
    """Stands around every call.

    Args:
        clock: Unix seconds.
        records: Of the calls under way.
        limits: Lets calls in.
        default_quota: What a caller may.
        default_deadline: Seconds a call may take where the caller set no deadline.
        longest: Seconds that any call may take.
    """

    def __init__(
        self,
        clock: Clock,
        records: Records,
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
        self._records = records

    @property
    def in_flight(self) -> int:
        """The calls under way."""
        return self._records.in_flight

    async def idle(self) -> None:
        """Wait until no call is under way: server.stop() returns before handlers have cleaned up."""
        await self._records.idle()

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
            with self._records.of(method.name, context) as record:
                try:
                    with self._admitted(record, lasting=lasting):
                        return await implementation(parse(message), self._call(context, record))
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record, error)

        return unary

    def _stream(
        self, method: MethodDescriptor, implementation: Stream
    ) -> Callable[[bytes, Context], AsyncIterator[Any]]:
        parse = _parser(method)

        async def stream(message: bytes, context: Context) -> AsyncGenerator[Message]:
            with self._records.of(method.name, context) as record:
                try:
                    with self._admitted(record, lasting=True), _ended_after(self._longest + STUCK_SECONDS):
                        async with contextlib.aclosing(
                            implementation(parse(message), self._call(context, record))
                        ) as responses:
                            async for response in responses:
                                record.sent()
                                yield response
                except Exception as error:  # noqa: BLE001  # the outermost boundary
                    await _abort(context, record, error)

        return stream

    def _admitted(self, record: Record, *, lasting: bool) -> Admission:
        return self.limits.admit(_host(record.peer), self.default_quota, streaming=lasting)

    def _call(self, context: Context, record: Record) -> Call:
        remaining = context.time_remaining()
        seconds = self._default_deadline if remaining is None else remaining
        return Call(self._clock() + min(seconds, self._longest), record.caller, record.tally)


async def _abort(context: Context, record: Record, error: Exception) -> NoReturn:
    told = record.failed(error)
    details = ("grpc-status-details-bin", told.status().SerializeToString())
    await context.abort(type(told).code, told.message, trailing_metadata=(*record.trailing_metadata, details))


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
