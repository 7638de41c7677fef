"""A real gRPC server that plays one scenario, behind a relay that can cut the connection."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from scenario_data import Scenario
from scenario_messages import METHODS, SERVICE, build, request_type, response_type, status

_CODES = {code.value[0]: code for code in grpc.StatusCode}
Context = grpc.aio.ServicerContext[Any, Any]
Encode = Callable[[Message], bytes]


def as_contracted(message: Message) -> bytes:
    """A message as this contract writes it."""
    return message.SerializeToString()


@dataclass
class Arrived:
    """A call as it arrived, and how it ended.

    Attributes:
        method: Its name.
        request: What it asked.
        metadata: What came with it; of a key sent twice, the last.
        remaining: Seconds that its deadline leaves; None: it has none.
        after: Seconds since the call before it had ended; 0 while that still runs.
        ended: "played" to its end, or the caller "left" before.
        ended_at: When the client could first know of its end.
        over: Set when it has ended.
    """

    method: str
    request: Message
    metadata: dict[str, str | bytes]
    remaining: float | None
    after: float
    ended: str = ""
    ended_at: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def ends(self) -> None:
        """Its end is on its way to the client, who may be back before this side has gone on."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()


class Relay:
    """Passes bytes on to the server of the moment, until it is told to cut."""

    def __init__(self) -> None:
        self.backend = 0
        self.port = 0
        self._pipes: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens on a free port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cuts, and listens no more."""
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Ends every connection that there is, at once and on both sides."""
        for pipe in self._pipes:
            pipe.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        onward = None
        try:
            from_server, onward = await asyncio.open_connection("127.0.0.1", self.backend)
            self._pipes |= {writer.transport, onward.transport}  # type: ignore[arg-type]
            await asyncio.gather(_pass(reader, onward), _pass(from_server, writer))
        except (OSError, asyncio.CancelledError):
            pass  # cut, or there is nobody
        finally:
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()
                    self._pipes.discard(end.transport)
            self._tasks.discard(task)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


class Conversation:
    """The gateway's side of one scenario."""

    def __init__(
        self, scenario: Scenario, credentials: grpc.ServerCredentials | None, encode: Encode
    ) -> None:
        self.arrived: list[Arrived] = []
        self.faults: list[str] = []
        self._scenario = scenario
        self._credentials = credentials
        self._encode = encode
        self._relay = Relay()
        self._servers: list[grpc.aio.Server] = []
        self._stopping: list[asyncio.Task[None]] = []
        self._started_at = time.monotonic()

    @property
    def endpoint(self) -> str:
        """Where a client reaches it: host and port."""
        return f"127.0.0.1:{self._relay.port}"

    async def start(self) -> None:
        """Serves, until `stop`."""
        await self._relay.start()
        await self._serve()

    async def stop(self) -> None:
        """Ends what is still running."""
        await self._relay.stop()
        await asyncio.gather(*(server.stop(None) for server in self._servers), *self._stopping)

    async def _serve(self) -> None:
        server = grpc.aio.server(
            options=[("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        handlers = {
            name: grpc.unary_stream_rpc_method_handler(
                self._handler(name),
                request_deserializer=request_type(name).FromString,
                response_serializer=self._encode,
            )
            for name in SERVICE.methods_by_name
            if name not in self._scenario.without
        }
        if handlers:
            service = grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
            server.add_generic_rpc_handlers((service,))
        well = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(well, server)
        states = health_pb2.HealthCheckResponse
        await well.set("", states.SERVING if self._scenario.serving else states.NOT_SERVING)
        if self._credentials is None:
            self._relay.backend = server.add_insecure_port("127.0.0.1:0")
        else:
            self._relay.backend = server.add_secure_port("127.0.0.1:0", self._credentials)
        await server.start()
        self._servers.append(server)

    def _handler(self, method: str) -> Any:
        # A unary answer is a stream of one message, on the wire.
        async def handle(request: Message, context: Context) -> None:
            now = time.monotonic()
            before = self.arrived[-1].ended_at if self.arrived else self._started_at
            call = Arrived(
                method,
                request,
                dict(context.invocation_metadata() or ()),
                context.time_remaining(),
                0 if before is None else now - before,
            )
            self.arrived.append(call)
            number = len(self.arrived) - 1
            try:
                if number >= len(self._scenario.calls):
                    self.faults.append(f"call {number + 1} ({method}) was not expected")
                    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the scenario has no such call")
                for step in self._scenario.calls[number].get("play", ()):
                    await self._play(step, call, context)
                call.ended = "played"
            except asyncio.CancelledError:
                call.ended = "left"
                raise
            except grpc.aio.AbortError:
                call.ended = "played"
                raise
            finally:
                call.ends()
                call.over.set()

        return handle

    async def _play(  # noqa: C901 - a case for each kind of step
        self, step: str | Mapping[str, Any], call: Arrived, context: Context
    ) -> None:
        steps: Any = step if isinstance(step, dict) else {step: None}
        match steps:
            case {"send": data, **more}:
                message = build(response_type(call.method), data, unknown=bool(more.get("unknown")))
                await context.write(message)
            case {"initial": pairs}:
                await context.send_initial_metadata(_metadata(pairs))
            case {"pause": seconds}:
                await asyncio.sleep(seconds)
            case {"silence": _}:
                await asyncio.Event().wait()
            case {"cut": _}:
                # What was written before is to arrive.
                await asyncio.sleep(0.2)
                call.ends()
                self._relay.cut()
                await asyncio.Event().wait()
            case {"goaway": _}:
                server = self._servers[-1]
                self._stopping.append(asyncio.create_task(_stopped(server)))
                await self._serve()
            case {"end": pairs}:
                context.set_trailing_metadata(_metadata(pairs))
            case {"fail": fail}:
                failure = status(fail)
                trailing = _metadata(fail.get("trailing", {}))
                if failure.details and not fail.get("damaged"):
                    trailing = (*trailing, ("grpc-status-details-bin", failure.SerializeToString()))
                if fail.get("damaged"):
                    trailing = (*trailing, ("grpc-status-details-bin", b"\xff\xff\xff"))
                call.ends()
                await context.abort(_CODES[failure.code], failure.message, trailing)
            case other:
                raise AssertionError(f"no such step: {other}")


async def _stopped(server: grpc.aio.Server) -> None:
    await server.stop(grace=30)


def _metadata(pairs: Mapping[str, str] | None) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, base64.b64decode(value) if key.endswith("-bin") else value)
        for key, value in (pairs or {}).items()
    )


@contextlib.asynccontextmanager
async def conversation(
    scenario: Scenario,
    credentials: grpc.ServerCredentials | None = None,
    encode: Encode = as_contracted,
) -> AsyncIterator[Conversation]:
    """Serves a scenario as long as the context lasts.

    Args:
        scenario: What to play.
        credentials: For TLS.
        encode: From the contract's messages to bytes, if it is to be another contract's.
    """
    unknown = {call["method"] for call in scenario.calls} - set(SERVICE.methods_by_name)
    assert not unknown, f"{scenario.name}: no such method: {unknown}"
    assert scenario.do["call"] in METHODS, f"{scenario.name}: no such call"
    served = Conversation(scenario, credentials, encode)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()
