"""Where the gateway listens: its gRPC servers, and how they end."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from imagetasks_server import descriptors
from imagetasks_server.addresses import is_local
from imagetasks_server.assembly import Gateway
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.contract import SERVICE
from imagetasks_server.grpc_server import COUNTING, new_server
from imagetasks_server.health import Health
from imagetasks_server.record import Records
from imagetasks_server.telemetry import Event

if TYPE_CHECKING:
    from imagetasks_server.tls import Certificates

log = structlog.get_logger()

# Calls that come on are answered for at most this part of the time that draining may take, while clients hear
# of it. The rest is for those that were taken last.
TAKING_PART: Final = 0.8
# So long without a new call, and none had been waiting.
QUIET_SECONDS: Final = 0.1

# Of every server.
_COMMON: Final = (
    # Two gateways on one port: the second must fail instead of taking every other call.
    ("grpc.so_reuseport", 0),
    # A connection that does not get as far as HTTP/2's settings is closed after this, not after two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A frozen peer is noticed within half a minute; keepalive alone takes a minute.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
SERVER_OPTIONS: Final = (
    *_COMMON,
    # Of one connection. A client that has so many waits with the next call until one of them has ended.
    ("grpc.max_concurrent_streams", 1000),
    # What gRPC takes of a call before the gateway reads it, whoever it is from; it must not grow by itself.
    # Less: callers far away send less in one round trip.
    ("grpc.http2.lookahead_bytes", 16 * 1024),
    ("grpc.http2.bdp_probe", 0),
    # The largest legal request is below it.
    ("grpc.max_receive_message_length", 256 * 1024),
    # Credentials and trace headers take less than half of it; the default above which gRPC refuses only
    # at random is 8 KiB, and it refuses always above 16.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # Without a call for so long: the client connects again when it has one.
    ("grpc.max_connection_idle_ms", 10 * 60 * 1000),
    # New calls go to a new connection, so that a balancer can choose anew. Streams stay to their own end.
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
)
# Seconds for which calls last at most beyond their time: a watch whose client does not read is cancelled.
BEYOND: Final = 60.0
_MOST_MILLISECONDS: Final = 2**31 - 1
# Whoever asks for health alone needs no more.
_HEALTH_OPTIONS: Final = (
    *_COMMON,
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_receive_message_length", 1024),
    ("grpc.max_connection_idle_ms", 60 * 1000),
)
HEALTH_CONNECTIONS: Final = 1000
# Of the descriptors that callers may have, as many more: the rest is for AWS, metrics and files.
_HEALTH_PART: Final = 12


async def _taken(records: Records, seconds: float) -> None:
    """Wait until gRPC has handed over the calls that had arrived: stopping would fail them.

    It hands them over in order, so it has when a while has gone by without a new one, or all the seconds.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while (left := ends - loop.time()) > 0:
        begun = records.begun
        await asyncio.sleep(min(left, QUIET_SECONDS))
        if records.begun == begun:
            return


@dataclass(frozen=True, slots=True)
class Listening:
    """The servers, each with its port taken.

    Attributes:
        settings: As given.
        server: The gateway's.
        address: Where it listens, with the port that was chosen for port 0.
        health: What its health service says.
        health_server: The one that answers for health alone, if there is one.
        health_address: Where that listens.
    """

    settings: Settings
    server: grpc.aio.Server
    address: str
    health: Health
    health_server: grpc.aio.Server | None = None
    health_address: str = ""

    async def start(self) -> None:
        """Answer calls, not yet SERVING."""
        await self.server.start()
        addresses = {"address": self.address}
        if self.health_server is not None:
            await self.health_server.start()
            addresses["health"] = self.health_address
        log.info(Event.LISTENING, **addresses)
        if self.settings.tls_certificate is None and not self.settings.is_local:
            shows = "every call, its credential and its answer"
            log.warning(Event.EXPOSED, key="listen", address=self.address, shows=shows)
        if self.health_address and not is_local(self.health_address):
            # Whoever asks there, as the kubelet does, can often do no TLS: nothing is wrong with it.
            shows = "whether the gateway serves"
            log.info(Event.EXPOSED, key="health_listen", address=self.health_address, shows=shows)

    async def ended(self) -> None:
        """Wait until a server has ended; raise why, if it was not told to."""
        servers = [each for each in (self.server, self.health_server) if each is not None]
        waiting = [asyncio.ensure_future(each.wait_for_termination()) for each in servers]
        # Not cancelled: that would cancel what `stop` waits for.
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()

    async def drain(self, gateway: Gateway, seconds: float) -> None:
        """Take no more calls, wait until all have ended, and end those that have not by then."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        gateway.records.tell()
        log.info(Event.DRAINING)
        await self.health.drain()
        # Watches say goodbye with a token, waits answer; whoever else is under way gets its time.
        gateway.followers.drain()
        await _taken(gateway.records, seconds * TAKING_PART)
        await self.server.stop(max(0.0, ends - loop.time()))
        await gateway.boundary.idle()
        # It says to the end that the gateway does not serve.
        if self.health_server is not None:
            await self.health_server.stop(0)
        log.info(Event.STOPPED)


async def listen(
    settings: Settings, gateway: Gateway, certificates: "Certificates | None" = None
) -> Listening:
    """Take the ports that the settings name. Nothing answers there before `Listening.start`.

    Args:
        settings: Where, and whether reflection is served.
        gateway: What answers.
        certificates: The gateway's own; None: plaintext.

    Raises:
        ConfigError: Something else listens there.
    """
    # Above C-core's own default, about 1,000, it refuses at random.
    waiting = settings.limits.max_waiting_calls
    limits = (
        ("grpc.server.max_pending_requests", waiting),
        ("grpc.server.max_pending_requests_hard_limit", waiting),
        ("grpc.server_max_unrequested_time_in_server", settings.limits.max_waiting_seconds),
        # Calls have ended by themselves until then. What has not are answers that nobody reads: grpc.aio ends
        # such a call only with its connection.
        (
            "grpc.max_connection_age_grace_ms",
            min(round((settings.limits.max_stream_age + BEYOND) * 1000), _MOST_MILLISECONDS),
        ),
        ("grpc.max_allowed_incoming_connections", min(settings.limits.max_connections, descriptors.left())),
    )
    counting = COUNTING if settings.metrics_listen else ()
    server = new_server((*SERVER_OPTIONS, *limits, *counting))
    server.add_registered_method_handlers(SERVICE.full_name, gateway.boundary.handlers(gateway.service))
    said = Health()
    await said.add_to(server)
    names = [SERVICE.full_name, health.SERVICE_NAME]
    if settings.is_local if settings.reflection is None else settings.reflection:
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    health_server, health_address = None, ""
    if settings.health_listen is not None:
        most = (
            "grpc.max_allowed_incoming_connections",
            min(HEALTH_CONNECTIONS, descriptors.left() // _HEALTH_PART),
        )
        health_server = new_server((*_HEALTH_OPTIONS, most, *counting))
        await said.add_to(health_server)
        health_address = _add_port(health_server, "health_listen", settings.health_listen, None)
    address = _add_port(server, "listen", settings.listen, certificates)
    return Listening(settings, server, address, said, health_server, health_address)


def _add_port(server: grpc.aio.Server, key: str, address: str, certificates: "Certificates | None") -> str:
    """Returns the address with the port that is used."""
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.credentials())
    except RuntimeError:
        raise ConfigError(f"{key}: cannot listen on {address}; is something else there?") from None
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
