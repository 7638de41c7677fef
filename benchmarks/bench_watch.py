"""What watching costs: a change told to many watchers, and what an idle stream holds, beside bare grpc.aio.

The bare server sends the same bytes from a generator that waits for an event. Each kind is a process of its
own, and so are its clients. Compare within one run.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/server"))

import grpc
import structlog
import uvloop
from fake_ec2 import FakeWorld

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server.assembly import assemble
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import Settings
from imagetasks_server.listening import SERVER_OPTIONS, listen

ROUNDS = 20
CHANNELS = 20
Event = pb.WatchStoreImageTasksResponse


def main() -> None:
    """Print the table; with `--serve` measure one row, with `--clients` be the clients of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--watchers", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--serve", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--clients", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        uvloop.run(watch(arguments.clients, arguments.watchers))
        return
    if arguments.serve:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        print(json.dumps(uvloop.run(measure(arguments.serve, arguments.watchers))))
        return
    print(f"{'kind':<8} {'watchers':>8} {'accepted in':>12} {'p50':>10} {'p99':>10} {'a stream':>10}")
    rows = {}
    for kind in ("bare", "gateway"):
        command = [sys.executable, __file__, "--watchers", str(arguments.watchers), "--serve", kind]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows[kind] = row = json.loads(result.stdout)
        print(
            f"{kind:<8} {arguments.watchers:>8} {row['opened']:>10.2f} s {row['p50']:>7.1f} ms "
            f"{row['p99']:>7.1f} ms {row['memory']:>6.1f} KiB"
        )
    print(f"p99 of the gateway: {rows['gateway']['p99'] / rows['bare']['p99']:.2f} x bare")


async def measure(kind: str, watchers: int) -> dict[str, float]:
    """One row."""
    address, change, close = await (serve_bare if kind == "bare" else serve_gateway)()
    before = memory()
    command = [sys.executable, __file__, "--watchers", str(watchers), "--clients", address]
    began = time.perf_counter()
    clients = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    assert clients.stdout is not None
    assert clients.stdin is not None
    ready = json.loads(await clients.stdout.readline())
    assert ready == watchers
    opened = time.perf_counter() - began
    taken = (memory() - before) / watchers
    found: list[list[float]] = []
    for number in range(ROUNDS):
        await change(number + 1)
        found.append(sorted(json.loads(await clients.stdout.readline())))
    clients.stdin.close()
    await clients.wait()
    await close()
    # The first rounds warm everything up.
    kept = found[ROUNDS // 4 :]
    return {
        "opened": opened,
        "memory": taken,
        "p50": statistics.median(each[len(each) // 2] for each in kept),
        "p99": statistics.median(each[len(each) * 99 // 100] for each in kept),
    }


Served = tuple[str, Callable[[int], Awaitable[None]], Callable[[], Awaitable[None]]]


async def serve_gateway() -> Served:
    clock = steady_clock()
    world = FakeWorld(clock)
    ec2 = world.ec2()
    task = ec2.add()
    settings = Settings(
        accounts=[{"name": "main"}],  # type: ignore[arg-type]
        listen="127.0.0.1:0",
        budget={"capacity": 1e6, "refill": 1e6, "initial": 1e6},  # type: ignore[arg-type]
        poll_interval=1000,
        idle_poll_interval=1000,
        heartbeat_interval=1000,
    )
    accounts: Any = world.accounts
    gateway = assemble(settings, accounts, clock)
    listening = await listen(settings, gateway)

    async def change(percentage: int) -> None:
        def now(_: object) -> None:
            task.percentage, task.reason = percentage, str(time.monotonic_ns())

        ec2.between = now
        (tracked,) = gateway.registry
        tracked.poller.want(clock())

    async def close() -> None:
        gateway.followers.drain()
        await listening.server.stop(5)
        await gateway.close()

    return listening.address, change, close


async def serve_bare() -> Served:
    waiting: set[asyncio.Event] = set()
    message = b""

    async def stream(request: bytes, context: Any) -> AsyncGenerator[bytes]:
        del request, context
        wake = asyncio.Event()
        waiting.add(wake)
        yield Event(snapshot_complete=Event.SnapshotComplete()).SerializeToString()
        while True:
            await wake.wait()
            wake.clear()
            yield message

    method = grpc.unary_stream_rpc_method_handler(stream)
    name = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"].full_name
    pending = [(f"grpc.server.max_pending_requests{each}", 100_000) for each in ("", "_hard_limit")]
    server = grpc.aio.server(options=[*SERVER_OPTIONS, *pending])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"WatchStoreImageTasks": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def change(percentage: int) -> None:
        nonlocal message
        task = FakeWorld(time.time).ec2().add(percentage=percentage, reason=str(time.monotonic_ns()))
        result = pb.StoreImageTaskResult()
        task.send(result, FakeWorld(time.time).ec2().target)
        changes = Event.Changes(changes=[pb.TaskChange(type=pb.TaskChange.TYPE_MODIFIED, task=result)])
        message = Event(changes=changes, resume_token="x" * 100).SerializeToString()
        for each in waiting:
            each.set()

    async def close() -> None:
        await server.stop(0)

    return f"127.0.0.1:{port}", change, close


async def watch(address: str, watchers: int) -> None:
    """Print when all are covered, then after each change how many milliseconds it took to each."""
    covered = 0
    found: list[float] = []
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]

    async def one(number: int) -> None:
        nonlocal covered
        stub: Any = StoreImageTaskServiceStub(channels[number % CHANNELS])
        fresh = True
        async for event in stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest()):
            if event.HasField("snapshot_complete"):
                covered += 1
                fresh = False
                if covered == watchers:
                    print(watchers, flush=True)
            elif event.HasField("changes") and not fresh:
                at = int(event.changes.changes[0].task.store_task_failure_reason)
                found.append((time.monotonic_ns() - at) / 1e6)
                if len(found) == watchers:
                    print(json.dumps(found), flush=True)
                    found.clear()

    tasks = [asyncio.create_task(one(number)) for number in range(watchers)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for channel in channels:
        await channel.close()


def memory() -> float:
    """KiB that this process holds."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


if __name__ == "__main__":
    main()
