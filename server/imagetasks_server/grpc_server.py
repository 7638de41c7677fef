"""gRPC's server, which goes on whatever method it is asked for.

Since 1.84, grpc.aio decodes the path of a call in the loop that takes all calls, unless C-core has found the
call's method by itself. With the first path that is no UTF-8 that loop ends, and the server with it: one
request of anybody would do. So every method is registered with C-core, and whatever remains is refused here,
before its path is looked at.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NoReturn

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
    """Takes the calls of each method in a task of its own.

    The base waits for the next call of each of ten methods anew after every call.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._handlers: dict[str, Any] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._handlers |= handlers

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[NoReturn]:
        """Where the base waits for one call, it waits for this, which ends when no more can come."""
        return asyncio.create_task(self._refuse_each() if method is None else self._take_each(method))

    async def _take_each(self, method: bytes) -> NoReturn:
        """Hand each call of a registered method to its handler, as the base does."""
        loop = asyncio.get_running_loop()
        name = method.decode()
        resolver = cygrpc._MethodResolver([], self._handlers)  # noqa: SLF001
        while True:
            call = await self._request_registered_call(method)
            _handed_over.count += 1
            handling = cygrpc._handle_rpc(name, resolver, (), call, loop, False)  # noqa: FBT003, SLF001
            self._keep(cygrpc._schedule_rpc_coro(handling, call, loop, name))  # noqa: SLF001
            # The next one may be long in coming.
            del call, handling

    async def _refuse_each(self) -> NoReturn:
        """Refuse each call of a method that is not registered."""
        while True:
            call = await self._request_call()
            _handed_over.count += 1
            self._keep(_refuse(call))
            del call

    def _keep(self, handling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(handling)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


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
