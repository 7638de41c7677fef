"""A server process that describes tasks of a fake EC2: with the gateway's boundary around it, or without.

`python describe_server.py gateway|service TASKS` prints its address. It ends with its standard input.
"""

import asyncio
import sys
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
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import Settings
from imagetasks_server.contract import SERVICE
from imagetasks_server.listening import SERVER_OPTIONS, listen
from imagetasks_server.observation import measured
from imagetasks_server.permission import EVERYTHING
from imagetasks_server.record import TOGETHER
from imagetasks_server.service import Call
from imagetasks_server.tally import Tally
from imagetasks_server.telemetry import configure_log

METHOD = "DescribeStoreImageTasks"


async def serve(kind: str, tasks: int) -> None:
    """Until standard input ends."""
    clock = steady_clock()
    world = FakeWorld(clock)
    for age in range(tasks):
        world.ec2().add(age=age)
    settings = Settings(**EVERYTHING_ON, accounts=[{"name": "main"}], default_max_age=1e6)  # type: ignore[arg-type]
    configure_log(settings.log_level, json_lines=True)
    accounts: Any = world.accounts
    gateway = assemble(settings, accounts, clock, together=TOGETHER)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(gateway.close)
        if kind == "gateway":
            await stack.enter_async_context(measured(settings, gateway))
            listening = await listen(settings, gateway)
            await listening.start()
            stack.push_async_callback(listening.drain, gateway, 5.0)
            print(listening.address, flush=True)
        else:
            print(await alone(stack, gateway), flush=True)
        # As a gateway does before it serves.
        collector.settle()
        await asyncio.to_thread(sys.stdin.read)


async def alone(stack: AsyncExitStack, gateway: Gateway) -> str:
    """The service behind a handler that asks nobody who calls, and limits, counts and tells nothing."""
    service, clock = gateway.service, steady_clock()
    again = service.again[METHOD]

    async def handle(message: bytes, context: Any) -> bytes:
        del context
        answer = again(message, EVERYTHING, Tally())
        if answer is None:
            request = pb.DescribeStoreImageTasksRequest.FromString(message)
            answer = await service.describe_store_image_tasks(request, Call(clock() + 30, message=message))
        return answer

    server = grpc.aio.server(options=SERVER_OPTIONS)
    method: Any = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, {METHOD: method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return f"127.0.0.1:{port}"


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
