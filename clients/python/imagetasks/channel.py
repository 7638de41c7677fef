"""How to reach a gateway: endpoint, TLS, and the channel options that both clients share.

Retries are gRPC's own, by service config: every method of the contract is free of side effects, so
UNAVAILABLE is tried again (a stream only before its first message), and so is CANCELLED, with which a
server's gRPC refuses when too many calls wait. What the caller cancels is over at once. RESOURCE_EXHAUSTED
is not tried again: it tells that EC2's allowance is spent, and retrying would spend more of it.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import grpc

DEFAULT_ENDPOINT = "127.0.0.1:50051"
ENDPOINT_VARIABLE = "IMAGETASKS_ENDPOINT"
TOKEN_VARIABLE = "IMAGETASKS_TOKEN"  # noqa: S105  # its name

# Bytes in one message. A page ends at 2 MiB; the answer to a wait has all its tasks in one.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Seconds of silence in a running call before the connection is probed. Less finds a dead peer sooner and
# costs packets; a gateway refuses probes that come too often.
DEFAULT_KEEPALIVE = 30.0
# Seconds that a probe may take before the connection counts as dead.
_KEEPALIVE_TIMEOUT = 10.0
# Attempts in all; the waits between them are 0.1, 0.3 and 0.9 s, each a fifth more or less.
_ATTEMPTS = 4

_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "imagetasks.v1.StoreImageTaskService"}],
            "retryPolicy": {
                "maxAttempts": _ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
    ],
}
SERVICE_CONFIG = json.dumps(_CONFIG)
# Of several gateways each takes its turn, but for those that say that they do not serve.
_TAKING_TURNS = json.dumps(
    {**_CONFIG, "loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
# How an endpoint begins that is a list.
_LISTS = ("ipv4:", "ipv6:")

ChannelOption = tuple[str, str | int]
Token = str | Callable[[], str]
Pem = str | os.PathLike[str] | bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway listens.

    Attributes:
        target: What gRPC dials: "host:port" or "unix:path".
        tls: Whether the connection is encrypted.
        local: Whether it stays on this machine.
        several: Whether these are several gateways, which take turns.
    """

    target: str
    tls: bool
    local: bool
    several: bool = False

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Reads "host:port", "http://host:port" (both plaintext), "https://host:port" or "unix:path".

        A port left out is 80 for http, 443 for https, else 50051. "ipv4:address:port,address:port" and the
        same with ipv6 are several gateways, in plaintext.

        Raises:
            ValueError: The text is none of these.
        """
        if text.startswith(_LISTS):
            return cls._several(text)
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.strip("/"):
                raise ValueError(f"endpoint {text!r} lacks the socket's path")
            return cls(target=text, tls=False, local=True)
        try:
            url = urlsplit(text if "://" in text else f"//{text}")
            host, port = url.hostname, url.port
        except ValueError as error:
            raise ValueError(f"endpoint {text!r} is malformed: {error}") from None
        ports = {"": 50051, "http": 80, "https": 443}
        if url.scheme not in ports:
            raise ValueError(f"endpoint {text!r}: use host:port, http://, https://, unix:, ipv4: or ipv6:")
        if not host or any(character.isspace() for character in text):
            raise ValueError(f"endpoint {text!r} lacks a host")
        if url.path.strip("/") or url.query or url.fragment or url.username is not None:
            raise ValueError(f"endpoint {text!r} may have only a host and a port")
        port = ports[url.scheme] if port is None else port
        shown = f"[{host}]" if ":" in host else host
        return cls(target=f"{shown}:{port}", tls=url.scheme == "https", local=_is_loopback(host))

    @classmethod
    def _several(cls, text: str) -> "Endpoint":
        scheme, _, addresses = text.partition(":")
        hosts = []
        for address in addresses.split(","):
            try:
                url = urlsplit(f"//{address}")
                good = url.port is not None and f"ipv{ip_address(url.hostname or '').version}" == scheme
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"endpoint {text!r}: {address!r} is not address:port of {scheme}")
            hosts.append(url.hostname or "")
        return cls(target=text, tls=False, local=all(map(_is_loopback, hosts)), several=True)


@dataclass(frozen=True, slots=True)
class Route:
    """What gRPC needs to open a channel; `credentials` is None for plaintext."""

    target: str
    credentials: grpc.ChannelCredentials | None
    options: tuple[ChannelOption, ...]


def route(
    endpoint: str | None,
    *,
    token: Token | None,
    ca_bundle: Pem | None,
    client_certificate: Pem | None,
    client_key: Pem | None,
    max_message_bytes: int,
    keepalive: float,
    options: Sequence[ChannelOption],
) -> Route:
    """Works out how to reach a gateway. The arguments are those of `imagetasks.connect`.

    Raises:
        ValueError: The endpoint is malformed, TLS files are given for plaintext, only one of client
            certificate and key is given, or a token would cross the network in plaintext.
        OSError: A TLS file cannot be read.
    """
    where = Endpoint.parse(resolve(endpoint))
    given = (ca_bundle, client_certificate, client_key)
    credentials = None
    if where.tls:
        if (client_certificate is None) != (client_key is None):
            raise ValueError("a client certificate and its key belong together")
        ca, certificate, key = (None if pem is None else _read(pem) for pem in given)
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    elif any(pem is not None for pem in given):
        raise ValueError("certificates need TLS: write the endpoint with https://")
    elif token is not None and not where.local:
        raise ValueError(
            "a token is not sent over the network in plaintext: write the endpoint with https://"
        )
    chosen: dict[str, str | int] = {
        "grpc.service_config": _TAKING_TURNS if where.several else SERVICE_CONFIG,
        "grpc.max_receive_message_length": max_message_bytes,
        # A replaced gateway is found again within the retries above, and within seconds after a long outage.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 10_000,
        "grpc.primary_user_agent": "imagetasks-python",
    }
    if keepalive > 0:
        chosen |= {
            "grpc.keepalive_time_ms": round(keepalive * 1000),
            "grpc.keepalive_timeout_ms": round(_KEEPALIVE_TIMEOUT * 1000),
            # Without this a probe may take a minute whatever keepalive_timeout_ms says.
            "grpc.http2.ping_timeout_ms": round(_KEEPALIVE_TIMEOUT * 1000),
            "grpc.http2.max_pings_without_data": 0,
        }
    if where.local:
        # gRPC would ask a proxy from the environment even for this machine.
        chosen["grpc.enable_http_proxy"] = 0
    chosen |= dict(options)
    return Route(where.target, credentials, tuple(chosen.items()))


def resolve(endpoint: str | None) -> str:
    """The endpoint given, else IMAGETASKS_ENDPOINT, else the default."""
    return endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT


def metadata(token: Token | None) -> tuple[tuple[str, str], ...]:
    """A call's metadata: the bearer token, asked for anew if it is a function."""
    if token is None:
        return ()
    return (("authorization", f"Bearer {token if isinstance(token, str) else token()}"),)


def chosen_token(path: str | None) -> Token | None:
    """The bearer token of a file, else of IMAGETASKS_TOKEN, else None.

    The file is read anew for each call: who renews a token writes it there. While it cannot be read, the last
    one is sent.

    Raises:
        ValueError: What is there is no bearer token.
        OSError: The file cannot be read.
    """
    if path is None:
        token = os.environ.get(TOKEN_VARIABLE)
        return _checked(token, TOKEN_VARIABLE) if token else None

    def read() -> str:
        return _checked(Path(path).read_text(encoding="utf-8"), path)

    last = read()

    def newest() -> str:
        nonlocal last
        with contextlib.suppress(OSError, ValueError):
            last = read()
        return last

    return newest


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"{where} does not hold a bearer token")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(pem: Pem) -> bytes:
    return pem if isinstance(pem, bytes) else Path(pem).read_bytes()
