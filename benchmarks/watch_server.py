"""A server process that tells changes: the gateway with everything on, or a bare fan-out of as many bytes.

`python watch_server.py gateway|bare SECONDS` prints its address. Who hears nothing for so long gets a
heartbeat, from the bare one as long as the gateway's; 0: the bare one sends none. It understands lines:
"change 3" changes something for the third time, "open" prints how many streams are open. It ends with its
standard input. A change carries in its failure reason the monotonic nanoseconds at which it became known: in
both before anything is made of it.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/server"))

import grpc
import uvloop
from fake_ec2 import FakeWorld
from measured import EVERYTHING_ON

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import collector
from imagetasks_server.assembly import assemble
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import Settings
from imagetasks_server.contract import SERVICE
from imagetasks_server.listening import SERVER_OPTIONS, listen
from imagetasks_server.observation import measured
from imagetasks_server.record import TOGETHER
from imagetasks_server.telemetry import configure_log

# As long as the gateway's.
TOKEN_BYTES = 128
Event = pb.WatchStoreImageTasksResponse
# The address, what changes something, and how many streams are open.
Served = tuple[str, Callable[[int], Awaitable[None]], Callable[[], int]]


async def serve_gateway(stack: AsyncExitStack, heartbeat: float) -> Served:
    clock = steady_clock()
    world = FakeWorld(clock)
    ec2 = world.ec2()
    task = ec2.add()
    fields = {
        **EVERYTHING_ON,
        "accounts": [{"name": "main"}],
        "heartbeat_interval": heartbeat,
        # It reads when it is told to.
        "poll_interval": 1000,
        "idle_poll_interval": 1000,
    }
    settings = Settings(**fields)
    configure_log(settings.log_level, json_lines=True)
    accounts: Any = world.accounts
    gateway = assemble(settings, accounts, clock, together=TOGETHER)
    stack.push_async_callback(gateway.close)
    await stack.enter_async_context(measured(settings, gateway))
    listening = await listen(settings, gateway)
    await listening.start()
    stack.push_async_callback(listening.drain, gateway, 5.0)

    async def change(percentage: int) -> None:
        def now(_: object) -> None:
            # Once: a read that somebody else causes changes nothing.
            ec2.between = lambda _: None
            task.percentage, task.reason = percentage, str(time.monotonic_ns())

        ec2.between = now
        (tracked,) = gateway.registry
        tracked.poller.want(clock())

    return listening.address, change, lambda: gateway.boundary.in_flight


async def serve_bare(stack: AsyncExitStack, heartbeat: float) -> Served:
    waiting: set[asyncio.Event] = set()
    message = b""
    beat = Event(heartbeat=Event.Heartbeat(), resume_token="x" * TOKEN_BYTES).SerializeToString()
    loop = asyncio.get_running_loop()

    async def stream(request: bytes, context: Any) -> AsyncGenerator[bytes]:
        del request, context
        wake = asyncio.Event()
        waiting.add(wake)
        told = message
        yield Event(snapshot_complete=Event.SnapshotComplete()).SerializeToString()
        while True:
            # A timer each: the least that a stream can do for a heartbeat by itself.
            timer = loop.call_later(heartbeat, wake.set) if heartbeat else None
            await wake.wait()
            wake.clear()
            if timer is not None:
                timer.cancel()
            is_news, told = message is not told, message
            yield message if is_news else beat

    pending = [(f"grpc.server.max_pending_requests{each}", 100_000) for each in ("", "_hard_limit")]
    server = grpc.aio.server(options=[*SERVER_OPTIONS, *pending])
    method: Any = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, {"WatchStoreImageTasks": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)

    async def change(percentage: int) -> None:
        nonlocal message
        world = FakeWorld(time.time)
        task = world.ec2().add(percentage=percentage, reason=str(time.monotonic_ns()))
        result = pb.StoreImageTaskResult()
        task.send(result, world.ec2().target)
        changes = Event.Changes(changes=[pb.TaskChange(type=pb.TaskChange.TYPE_MODIFIED, task=result)])
        message = Event(changes=changes, resume_token="x" * TOKEN_BYTES).SerializeToString()
        for each in waiting:
            each.set()

    return f"127.0.0.1:{port}", change, lambda: len(waiting)


async def serve(kind: str, heartbeat: float) -> None:
    async with AsyncExitStack() as stack:
        address, change, opened = await (serve_bare if kind == "bare" else serve_gateway)(stack, heartbeat)
        # As a gateway does before it serves; the bare one shall not wait for the collector more than it does.
        collector.settle()
        print(address, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case ["change", number]:
                    await change(int(number))
                case _:
                    print(opened(), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
