"""A server process with one cached describe to give: the gateway as configured, or a bare handler.

For the benchmarks beside it. `python benchmarks/describing.py KIND` prints its address and serves until its
standard input ends.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/server"))

import grpc
import uvloop
from fake_ec2 import FakeWorld

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import assemble
from imagetasks_server.boundary import SERVICE
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import Settings
from imagetasks_server.listening import SERVER_OPTIONS, listen
from imagetasks_server.service import Call
from imagetasks_server.telemetry import configure_log

METHOD: Final = "DescribeStoreImageTasks"
PATH: Final = f"/{SERVICE.full_name}/{METHOD}"
TASKS: Final = 20
# What is on, per kind: settings over the defaults.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "bare": {},
    # A bare handler that asks the gateway's service.
    "no boundary": {},
    "gateway, no log": {"log_level": "error"},
    "gateway": {"log_json": True},
    "everything on": {
        "log_json": True,
        "limits": {
            "default_calls_per_second": 1e6,
            "default_concurrent_calls": 10_000,
            "default_open_streams": 10_000,
        },
    },
}


@dataclass(frozen=True)
class Served:
    """A server process.

    Attributes:
        process: It.
        address: Where it listens.
    """

    process: subprocess.Popen[bytes]
    address: str

    def memory(self) -> float:
        """MiB that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def processor(self) -> float:
        """Seconds of processor time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(kind: str, **settings: Any) -> Iterator[Served]:
    """A server process of one kind, with more settings, as long as the context lasts."""
    command = [sys.executable, __file__, kind, json.dumps(settings)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        address = process.stdout.readline().decode().strip()
        assert address, "the server does not start"
        yield Served(process, address)
        process.stdin.close()


async def serve(kind: str, more: dict[str, Any]) -> None:
    """Print the address and serve until standard input ends."""
    clock = steady_clock()
    world = FakeWorld(clock)
    world.ec2().add_ended(TASKS)
    fields = {
        "accounts": [{"name": "main"}],
        "listen": "127.0.0.1:0",
        "budget": {"capacity": 1e6, "refill": 1e6, "initial": 1e6},
        "default_max_age": 1e6,
        **KINDS[kind],
        **more,
    }
    settings = Settings(**fields)
    configure_log(settings.log_level, json_lines=True)
    accounts: Any = world.accounts
    gateway = assemble(settings, accounts, clock)
    request = pb.DescribeStoreImageTasksRequest()
    answer = await gateway.service.describe_store_image_tasks(request, Call(clock() + 60))
    if kind in {"bare", "no boundary"}:

        async def handle(message: bytes, context: Any) -> bytes:
            if kind == "bare":
                return answer
            del context
            parsed = pb.DescribeStoreImageTasksRequest.FromString(message)
            return await gateway.service.describe_store_image_tasks(parsed, Call(clock() + 60))

        server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {METHOD: grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
    else:
        listening = await listen(settings, gateway)
        server, address = listening.server, listening.address
    print(address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    await gateway.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
