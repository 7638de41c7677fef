"""gRPC's server, which goes on whatever method it is asked for.

Since 1.84, grpc.aio decodes the path of a call in the loop that takes all calls, unless C-core has found the
call's method by itself. With the first path that is no UTF-8 that loop ends, and the server with it: one
request of anybody would do. So every method is registered with C-core, and whatever remains is refused here,
before its path is looked at.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server


def new_server(options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """A server of the methods that are registered with it; generic handlers are never asked.

    Args:
        options: gRPC's, by name.
    """
    server: Any = _Server(options)
    return server  # type: ignore[no-any-return]


# Shows what arrives, at no cost that could be measured.
COUNTING: Final = (("grpc.enable_channelz", 1),)


class _HandedOver:
    count = 0


_handed_over = _HandedOver()


def arrived() -> int:
    """Calls that have come to this process's servers that are `COUNTING`, whatever became of them."""
    servers = json.loads(cygrpc.channelz_get_servers(0)).get("server", ())
    return sum(int(each["data"]["callsStarted"]) for each in servers)


def handed_over() -> int:
    """Those of them that gRPC has handed over; of the others some wait, and the rest it has refused."""
    return _handed_over.count


class _Server(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        # In place of the base's, which makes a core of gRPC's own.
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, None, (), None, tuple(options), None)


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # untyped
    async def _request_registered_call(self, method: object) -> Any:
        call = await super()._request_registered_call(method)
        _handed_over.count += 1
        return call

    async def _request_call(self) -> None:
        """Where the base waits for the next call of a method that is not registered: refuse it, and go on."""
        refusing: set[asyncio.Task[None]] = set()
        while True:
            call = await super()._request_call()
            _handed_over.count += 1
            task = asyncio.create_task(_refuse(call))
            refusing.add(task)
            task.add_done_callback(refusing.discard)


async def _refuse(call: Any) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())  # noqa: SLF001
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    except grpc.aio.AbortError as done:
        # The call keeps it: with this frame it would keep itself, until garbage is looked for.
        done.__traceback__ = None
    except cygrpc.ExecuteBatchError:
        # The caller has left.
        pass
