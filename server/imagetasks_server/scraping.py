"""The port that Prometheus asks: few connections at once, each for one scrape.

Metrics are encoded on the gateway's own loop, a hundred samples at a time: a thread would hold the
interpreter for longer, and would read what the loop changes.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

from aiohttp import web
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

# At once; one more is closed. Nobody is asked who he is there, and each may be sent megabytes.
CONNECTIONS: Final = 32
# That a connection may last, whatever it does or leaves undone. Prometheus gives up after ten.
SECONDS: Final = 30.0

# How OpenMetrics ends, which stands once.
_END: Final = b"# EOF\n"
_HEAD: Final = re.compile(rb"\A(?:#.*\n)+")


@contextlib.asynccontextmanager
async def scraped(
    registry: CollectorRegistry, tell: Callable[[], None], host: str, port: int
) -> AsyncIterator[int]:
    """Serve `/metrics` meanwhile; the port, also where 0 was asked for.

    Args:
        registry: What is told, besides the process.
        tell: Called first: what was not counted yet, is.
        host: Where to listen.
        port: Where to listen.

    Raises:
        OSError: It cannot listen there.
    """
    process = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=process)
    app = web.Application()
    app.router.add_get("/metrics", _answering(registry, process, tell))
    # Its own log would tell each scrape.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        server = runner.server
        assert server is not None
        listening = await asyncio.get_running_loop().create_server(
            lambda: _Door(server), host, port, reuse_port=False
        )
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
    finally:
        await runner.cleanup()


class _Door(asyncio.Protocol):
    """Lets a connection in to the server behind it, unless there are too many; and for so long at most."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        if len(self._server.connections) >= CONNECTIONS:
            transport.abort()
            return
        asyncio.get_running_loop().call_later(SECONDS, transport.abort)
        behind = self._server()
        transport.set_protocol(behind)
        behind.connection_made(transport)


def _answering(
    registry: CollectorRegistry, process: CollectorRegistry, tell: Callable[[], None]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # That reads files.
        parts = [(await asyncio.to_thread(encode, process)).removesuffix(_END)]
        name = ""
        tell()
        for family in registry.collect():
            part = encode(_Only(family)).removesuffix(_END)
            # What a family is stands above its first part.
            parts.append(_HEAD.sub(b"", part) if family.name == name else part)
            name = family.name
            # Calls go between two parts.
            await asyncio.sleep(0)
        if "openmetrics" in content_type:
            parts.append(_END)
        response = web.Response(body=b"".join(parts), headers={"Content-Type": content_type})
        # A connection that stays would be cut in the midst of a later scrape.
        response.force_close()
        return response

    return answer


class _Only(Collector):
    """One family, as what an encoder takes."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)
