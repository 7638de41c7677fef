"""A whole gateway in this process, of `main`'s own parts: fake accounts behind, a channel in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import pytest
from fake_ec2 import FakeWorld, Hold
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server.assembly import Gateway as Assembled
from imagetasks_server.assembly import assemble
from imagetasks_server.boundary import Boundary
from imagetasks_server.clock import Clock
from imagetasks_server.config import Settings
from imagetasks_server.listening import Listening, listen
from imagetasks_server.tls import Certificates
from imagetasks_server.tracked import Registry

T = TypeVar("T")

# Real seconds that something which must happen may take, on however slow a machine.
PATIENCE = 20.0

Event = pb.StreamStoreImageTasksResponse
Describe = pb.DescribeStoreImageTasksRequest
NO_AGE = Duration()


@dataclass
class Gateway:
    """A running gateway and a client's view of it.

    Attributes:
        world: EC2 behind it.
        clock: Its time.
        listening: Its servers.
        channel: To it.
        registry: What it keeps of each target.
        boundary: Counts its calls.
        gateway: Its parts.
        stub: Its methods.
    """

    world: FakeWorld
    clock: Clock
    listening: Listening
    channel: grpc.aio.Channel
    registry: Registry
    boundary: Boundary
    gateway: Assembled
    stub: Any

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.listening.address

    @property
    def inside(self) -> int:
        """The calls that were let in and have sent what they ask: each is as far as it comes at once."""
        return len(self.gateway.gate._inside)

    async def describe(
        self, deadline: float | None = PATIENCE, **request: Any
    ) -> pb.DescribeStoreImageTasksResponse:
        """A describe's answer."""
        response: pb.DescribeStoreImageTasksResponse = await self.stub.DescribeStoreImageTasks(
            Describe(**request), timeout=deadline
        )
        return response

    async def refused(self, deadline: float | None = PATIENCE, **request: Any) -> "Failure":
        """The error of a describe that must fail."""
        return await failure(self.describe(deadline, **request))

    def open_stream(self, deadline: float | None = PATIENCE, **request: Any) -> Any:
        """A stream's call object. Selector fields may be given flat."""
        selector = {
            key: request.pop(key) for key in ("accounts", "regions", "image_ids", "filters") if key in request
        }
        if selector:
            request["selector"] = pb.TaskSelector(**selector)
        return self.stub.StreamStoreImageTasks(pb.StreamStoreImageTasksRequest(**request), timeout=deadline)

    async def stream(self, deadline: float | None = PATIENCE, **request: Any) -> list[Event]:
        """All messages of a stream."""
        return [event async for event in self.open_stream(deadline, **request)]


# Starts a gateway over a world, with settings: the fixture `serve`.
Serve = Callable[..., Awaitable[Gateway]]


@dataclass(frozen=True)
class Failure:
    """A call's error as a client sees it.

    Attributes:
        code: The gRPC code.
        text: For people.
        status: All of it.
    """

    code: grpc.StatusCode
    text: str
    status: status_pb2.Status

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """The detail that every error has, exactly once."""
        (info,) = self.details(error_details_pb2.ErrorInfo)
        return info

    @property
    def reason(self) -> str:
        """The ErrorInfo's reason; its domain is checked."""
        assert self.info.domain == "imagetasks"
        return str(self.info.reason)

    @property
    def metadata(self) -> dict[str, str]:
        """The ErrorInfo's metadata."""
        return dict(self.info.metadata)

    @property
    def fields(self) -> list[str]:
        """The request fields at fault."""
        return [
            violation.field
            for detail in self.details(error_details_pb2.BadRequest)
            for violation in detail.field_violations
        ]

    def details(self, kind: type[Any]) -> list[Any]:
        """The details of one kind."""
        found = []
        for packed in self.status.details:
            detail = kind()
            if packed.Unpack(detail):
                found.append(detail)
        return found


async def failure(call: Awaitable[Any]) -> Failure:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
            # gRPC loses them at random above 8 KiB of metadata.
            assert len(value) <= 4096
    if status.details:
        assert (status.code, status.message) == (error.code().value[0], error.details())
    return Failure(error.code(), error.details() or "", status)


def reason_of(outcome: pb.TargetOutcome) -> str:
    """Why a target did not answer as asked; empty if it did."""
    if not outcome.HasField("status"):
        return ""
    info = error_details_pb2.ErrorInfo()
    assert outcome.status.details[0].Unpack(info)
    assert (info.metadata["account"], info.metadata.get("region", "")) == (
        outcome.target.account,
        outcome.target.region,
    )
    return str(info.reason)


def outcomes(response: Any) -> dict[tuple[str, str], tuple[str, str]]:
    """Per target its source and reason."""
    return {
        (each.target.account, each.target.region): (pb.Source.Name(each.source)[7:], reason_of(each))
        for each in response.target_outcomes
    }


def amis(response: Any) -> list[str]:
    """The AMI ids listed, in order."""
    return [task.ami_id for task in response.store_image_task_results]


def seconds(value: float) -> Duration:
    """A duration."""
    duration = Duration()
    duration.FromMicroseconds(round(value * 1_000_000))
    return duration


async def eventually(condition: Callable[[], object]) -> None:
    """Let everything run until the condition holds, which it must."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # a condition of others' code has no event
            await asyncio.sleep(0)


async def near_its_deadline(
    call: Coroutine[Any, Any, T], hold: Hold, clock: VirtualClock, tasks_left: int = 1
) -> T:
    """What a call gets when the gateway sees the end of its `PATIENCE` near.

    In truth there is plenty of time left, however slow the machine. Before, all has been done but what
    hangs, which keeps so many tasks of the gateway.
    """
    answer = asyncio.create_task(call)
    await hold.reached()
    await eventually(lambda: len(our_tasks()) == tasks_left)
    clock.advance(PATIENCE - 0.2)
    return await answer


def our_tasks() -> list[asyncio.Task[Any]]:
    """The asyncio tasks that run the gateway's own code below the calls: reads, lookups, discoveries."""
    return [task for task in asyncio.all_tasks() if _is_ours(task)]


def _is_ours(task: asyncio.Task[Any]) -> bool:
    file = getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", "")
    # What takes calls is there as long as its server is.
    return "imagetasks_server" in file and not file.endswith("grpc_server.py")


@contextlib.asynccontextmanager
async def serving(
    world: FakeWorld,
    clock: Clock,
    *,
    channel_options: Sequence[tuple[str, Any]] = (),
    certificates: Certificates | None = None,
    tracer: Any = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Serve the world.

    Settings are those of the configuration; the budget is ample unless they say otherwise. What
    traces calls, if anything, is a `Tracer`. When it ends, nothing that calls have started may still run.
    With certificates the channel, which has none, is of no use.
    """
    settings.setdefault("accounts", [{"name": name} for name in world.accounts])
    settings.setdefault("budget", {"capacity": 1e6, "refill": 1e6, "initial": 1e6})
    settings.setdefault("listen", "127.0.0.1:0")
    # A call's deadline comes before EC2's, however slow the machine.
    settings.setdefault("page_timeout", 3 * PATIENCE)
    # Nothing is read any more once nobody follows.
    settings.setdefault("poll_linger", 0.0)
    configured = Settings(**settings)
    accounts: Any = world.accounts
    async with contextlib.AsyncExitStack() as stack:
        gateway = assemble(configured, accounts, clock, tracer)
        registry, boundary = gateway.registry, gateway.boundary
        stack.push_async_callback(gateway.close)
        listening = await listen(configured, gateway, certificates)
        await listening.start()
        stack.push_async_callback(listening.drain, gateway, 5.0)
        await listening.health.serve(well=True)
        options = [("grpc.use_local_subchannel_pool", 1), *channel_options]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(listening.address, options=options)
        )
        stub: Any = StoreImageTaskServiceStub(channel)
        yield Gateway(world, clock, listening, channel, registry, boundary, gateway, stub)
        await channel.close()
        async with asyncio.timeout(PATIENCE):
            await boundary.idle()
            # A discovery belongs to nobody and may go on.
            await eventually(lambda: not [t for t in our_tasks() if "_discover" not in repr(t.get_coro())])
