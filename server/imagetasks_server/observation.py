"""What an operator sees besides the log: metrics on a port of their own, and traces sent away."""

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable, Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from imagetasks_server.addresses import is_local
from imagetasks_server.assembly import Gateway
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.gauges import Facts, Gauges
from imagetasks_server.roster import OrganizationState
from imagetasks_server.scraping import scraped
from imagetasks_server.telemetry import Event

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

log = structlog.get_logger()


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
    facts: Facts = MappingProxyType({}),
) -> AsyncIterator[str]:
    """Serve the metrics meanwhile, if that is wanted; the address, else nothing.

    Args:
        settings: Say where.
        gateway: Whose.
        organizations: How it stands with each.
        facts: What else is told.

    Raises:
        ConfigError: It cannot listen there.
    """
    if not settings.metrics_listen:
        yield ""
        return
    registry = gateway.records.metrics.registry
    registry.register(Gauges(gateway.records, gateway.targets, gateway.registry, organizations, facts))
    host, _, port = settings.metrics_listen.rpartition(":")
    async with contextlib.AsyncExitStack() as stack:
        try:
            chosen = await stack.enter_async_context(
                scraped(registry, gateway.records.tell, host.strip("[]"), int(port))
            )
        except OSError:
            raise ConfigError(
                f"metrics_listen: cannot listen on {settings.metrics_listen}; is something else there?"
            ) from None
        address = f"{host}:{chosen}"
        log.info(Event.METRICS, address=address)
        if not is_local(address):
            shows = "names of accounts, organizations and callers, and all numbers"
            log.warning(Event.EXPOSED, key="metrics_listen", address=address, shows=shows)
        yield address
