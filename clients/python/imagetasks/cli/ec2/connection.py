"""How the gateway is reached: the global options that speak of endpoints, certificates and time."""

import argparse
import math
import os
from dataclasses import dataclass

import grpc

from imagetasks import channel as channels
from imagetasks.cli.ec2.failures import Failure
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub

CA_VARIABLE = "AWS_CA_BUNDLE"
_DEFAULT_SECONDS = 60


@dataclass(frozen=True)
class Connection:
    """A channel to the gateway.

    Attributes:
        stub: The contract's methods.
        url: The endpoint as errors name it.
        timeout: Seconds a call may take; None: no limit.
        token: The bearer token, if there is one.
        channel: To be closed.
    """

    stub: StoreImageTaskServiceStub
    url: str
    timeout: float | None
    token: channels.Token | None
    channel: grpc.Channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with a call that is made now: a token may be renewed while a wait lasts."""
        return channels.metadata(self.token)


def seconds(value: str | None) -> int | None:
    """A timeout option's seconds; None: no limit.

    Raises:
        ValueError: It is not a number.
    """
    return (_DEFAULT_SECONDS if value is None else int(value)) or None


def within(seconds: float | None, left: float) -> float | None:
    """A time limit that leaves the rest of a command its time: the shorter of both; None: no limit."""
    shorter = min(math.inf if seconds is None else seconds, max(0.0, left))
    return None if shorter == math.inf else shorter


def connect(chosen: argparse.Namespace, own: argparse.Namespace, left: float = math.inf) -> Connection:
    """Opens a channel as the options say. Nothing is dialled before the first call, but for --no-verify-ssl.

    Args:
        chosen: The global options.
        own: The gateway's own options.
        left: Seconds that it may take at most.

    Raises:
        Failure: The options do not fit together, or a file cannot be read.
    """
    endpoint = channels.resolve(chosen.endpoint_url)
    url = f"{endpoint if '://' in endpoint else f'http://{endpoint}'}".rstrip("/") + "/"
    try:
        token = channels.chosen_token(own.token_file) if chosen.sign_request else None
        ca_bundle: str | bytes | None = None
        options: list[tuple[str, str | int]] = []
        if channels.Endpoint.parse(endpoint).tls:
            ca_bundle = chosen.ca_bundle or os.environ.get(CA_VARIABLE)
            if not chosen.verify_ssl:
                from imagetasks.cli.ec2 import unverified  # noqa: PLC0415 - rare, and slow to import

                ca_bundle, name = unverified.leaf(endpoint, within(seconds(chosen.connect_timeout), left))
                options.append(("grpc.ssl_target_name_override", name))
        if (connect_seconds := seconds(chosen.connect_timeout)) is not None:
            # gRPC gives up an attempt to connect after this time.
            options.append(("grpc.min_reconnect_backoff_ms", connect_seconds * 1000))
        route = channels.route(
            endpoint,
            token=token,
            ca_bundle=ca_bundle,
            client_certificate=own.client_certificate,
            client_key=own.client_key,
            max_message_bytes=channels.DEFAULT_MAX_MESSAGE_BYTES,
            keepalive=channels.DEFAULT_KEEPALIVE,
            options=options,
        )
    except TimeoutError as error:
        raise Failure(f'Connect timeout on endpoint URL: "{url}"') from error
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    if route.credentials is None:
        channel = grpc.insecure_channel(route.target, route.options)
    else:
        channel = grpc.secure_channel(route.target, route.credentials, route.options)
    return Connection(
        stub=StoreImageTaskServiceStub(channel),
        url=url,
        timeout=seconds(chosen.read_timeout),
        token=token,
        channel=channel,
    )
