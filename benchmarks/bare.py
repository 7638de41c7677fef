"""A bare grpc.aio server: `python bare.py FILE` answers every describe with the bytes of a file."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from imagetasks_server import collector
from imagetasks_server.contract import SERVICE
from imagetasks_server.listening import SERVER_OPTIONS


async def serve(answer: bytes) -> None:
    """Print the address and serve until standard input ends."""

    async def handle(request: bytes, context: Any) -> bytes:
        del request, context
        return answer

    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers: dict[str, Any] = {"DescribeStoreImageTasks": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    # As a gateway does.
    collector.settle()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]).read_bytes()))
