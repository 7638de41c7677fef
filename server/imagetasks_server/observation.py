"""What an operator sees besides the log: metrics on a port of their own, and traces sent away.

Metrics are served from the gateway's own loop, a hundred samples at a time: a thread would hold the
interpreter for longer, and would read what the loop changes.
"""

import asyncio
import contextlib
import importlib.metadata
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from imagetasks_server.addresses import is_local
from imagetasks_server.assembly import Gateway
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.gauges import Gauges
from imagetasks_server.roster import OrganizationState
from imagetasks_server.telemetry import Event

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

log = structlog.get_logger()

# How OpenMetrics ends, which stands once.
_END: Final = b"# EOF\n"
_HEAD: Final = re.compile(rb"\A(?:#.*\n)+")


@contextlib.asynccontextmanager
async def traced(settings: Settings) -> AsyncIterator["Tracer | None"]:
    """What traces calls meanwhile; None if nothing shall. What is left is sent at the end.

    Raises:
        ConfigError: The extra is not installed.
    """
    if not settings.tracing:
        yield None
        return
    # On a thread: it reads files, and what is left at the end may be long in the sending.
    tracer = await asyncio.to_thread(_tracer)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


def _tracer() -> "Tracer":
    try:
        from imagetasks_server.tracing import Tracer, exporting  # noqa: PLC0415  # an extra
    except ImportError:
        raise ConfigError("tracing: needs the extra: pip install 'imagetasks[server,otel]'") from None
    version = importlib.metadata.version("imagetasks")
    return Tracer(exporting(version), version)


@contextlib.asynccontextmanager
async def measured(
    settings: Settings,
    gateway: Gateway,
    organizations: Callable[[], Iterable[OrganizationState]] = tuple,
    expires_at: Callable[[], float | None] = lambda: None,
) -> AsyncIterator[str]:
    """Serve the metrics meanwhile, if that is wanted; the address, else nothing.

    Args:
        settings: Say where.
        gateway: Whose.
        organizations: How it stands with each.
        expires_at: Unix seconds at which the certificate expires; None without TLS.

    Raises:
        ConfigError: It cannot listen there.
    """
    if not settings.metrics_listen:
        yield ""
        return
    registry = gateway.records.metrics.registry
    registry.register(Gauges(gateway.records, gateway.targets, gateway.registry, organizations, expires_at))
    process = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=process)
    app = web.Application()
    app.router.add_get("/metrics", _scraped(registry, process, gateway.records.tell))
    # Its own log would tell each scrape.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        host, _, port = settings.metrics_listen.rpartition(":")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port), reuse_port=False).start()
        except OSError:
            raise ConfigError(
                f"metrics_listen: cannot listen on {settings.metrics_listen}; is something else there?"
            ) from None
        address = f"{host}:{runner.addresses[0][1]}"
        log.info(Event.METRICS, address=address)
        if not is_local(address):
            shows = "names of accounts, organizations and callers, and all numbers"
            log.warning(Event.EXPOSED, key="metrics_listen", address=address, shows=shows)
        yield address
    finally:
        await runner.cleanup()


def _scraped(
    registry: CollectorRegistry, process: CollectorRegistry, tell: Callable[[], None]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def scraped(request: web.Request) -> web.Response:
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
        return web.Response(body=b"".join(parts), headers={"Content-Type": content_type})

    return scraped


class _Only(Collector):
    """One family, as what an encoder takes."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)
