"""Endpoints, TLS, tokens and channel options."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from either_client import Connect
from scripted_gateway import serving, targets_answer

import imagetasks
from imagetasks import channel
from imagetasks.channel import Endpoint


@dataclass
class Certificate:
    authority: bytes
    chain: bytes
    key: bytes


@pytest.fixture(scope="module")
def localhost() -> Certificate:
    """Of 127.0.0.1."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    (chain,) = leaf.cert_chain_pems
    return Certificate(authority.cert_pem.bytes(), chain.bytes(), leaf.private_key_pem.bytes())


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:50051", Endpoint("127.0.0.1:50051", tls=False, local=True)),
        ("gateway", Endpoint("gateway:50051", tls=False, local=False)),
        ("gateway:7", Endpoint("gateway:7", tls=False, local=False)),
        ("http://gateway:7", Endpoint("gateway:7", tls=False, local=False)),
        ("http://gateway/", Endpoint("gateway:80", tls=False, local=False)),
        ("https://gateway.example.com", Endpoint("gateway.example.com:443", tls=True, local=False)),
        ("https://gateway:7", Endpoint("gateway:7", tls=True, local=False)),
        ("localhost:7", Endpoint("localhost:7", tls=False, local=True)),
        ("[::1]:7", Endpoint("[::1]:7", tls=False, local=True)),
        ("https://[2001:db8::1]:7", Endpoint("[2001:db8::1]:7", tls=True, local=False)),
        (
            "ipv4:127.0.0.1:7,127.0.0.2:8",
            Endpoint("ipv4:127.0.0.1:7,127.0.0.2:8", tls=False, local=True, several=True),
        ),
        (
            "ipv4:127.0.0.1:7,192.0.2.1:7",
            Endpoint("ipv4:127.0.0.1:7,192.0.2.1:7", tls=False, local=False, several=True),
        ),
        ("ipv6:[2001:db8::1]:7", Endpoint("ipv6:[2001:db8::1]:7", tls=False, local=False, several=True)),
        ("unix:/run/gateway.sock", Endpoint("unix:/run/gateway.sock", tls=False, local=True)),
        ("unix:///run/gateway.sock", Endpoint("unix:///run/gateway.sock", tls=False, local=True)),
    ],
)
def test_an_endpoint_is_understood(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "host:port",
            "host:99999",
            ":7",
            "ftp://host",
            "http://host/path",
            "https://u@host",
            "unix:",
            "a b",
        ),
        *(
            "ipv4:",
            "ipv4:127.0.0.1",
            "ipv4:127.0.0.1:7,",
            "ipv4:host:7",
            "ipv6:127.0.0.1:7",
            "ipv4:127.0.0.1:x",
        ),
    ],
)
def test_a_malformed_endpoint_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Endpoint.parse(text)


def test_without_an_endpoint_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGETASKS_ENDPOINT", "gateway:7")
    assert channel.resolve(None) == "gateway:7"
    assert channel.resolve("other:8") == "other:8"
    monkeypatch.delenv("IMAGETASKS_ENDPOINT")
    assert channel.resolve(None) == "127.0.0.1:50051"


async def test_a_unix_socket_is_reached(tmp_path: Path, connect: Connect) -> None:
    with serving(f"unix:{tmp_path}/gateway.sock") as gateway:
        gateway.targets = lambda *_: targets_answer("eu-west-1")
        async with connect(gateway.endpoint) as client:
            assert await client.targets() == targets_answer("eu-west-1")


async def test_tls_is_spoken_with_the_given_certificates(
    connect: Connect,
    localhost: Certificate,
    tmp_path: Path,
) -> None:
    ca_bundle = tmp_path / "ca.pem"
    ca_bundle.write_bytes(localhost.authority)
    mutual = grpc.ssl_server_credentials(
        [(localhost.key, localhost.chain)],
        localhost.authority,
        require_client_auth=True,
    )
    with serving(credentials=mutual) as gateway:
        gateway.targets = lambda *_: targets_answer("eu-west-1")
        async with connect(
            f"https://{gateway.endpoint}",
            ca_bundle=ca_bundle,
            client_certificate=localhost.chain,
            client_key=localhost.key,
            token="secret",
        ) as client:
            await client.targets()

        assert gateway.calls[0].metadata["authorization"] == "Bearer secret"


async def test_an_unknown_certificate_is_refused(connect: Connect, localhost: Certificate) -> None:
    credentials = grpc.ssl_server_credentials([(localhost.key, localhost.chain)])
    with serving(credentials=credentials) as gateway:
        async with connect(f"https://{gateway.endpoint}") as client:
            with pytest.raises(imagetasks.UnavailableError):
                await client.targets()
        assert gateway.calls == []


async def test_a_token_function_is_asked_at_each_call(connect: Connect) -> None:
    numbers = itertools.count(1)
    with serving() as gateway:
        gateway.targets = lambda *_: targets_answer()
        async with connect(gateway.endpoint, token=lambda: f"token-{next(numbers)}") as client:
            await client.targets()
            await client.targets()

        sent = [call.metadata["authorization"] for call in gateway.calls]
    assert sent == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize(
    ("endpoint", "arguments", "complaint"),
    [
        ("gateway:50051", {"token": "secret"}, "plaintext"),
        ("gateway:50051", {"ca_bundle": b"pem"}, "https://"),
        ("https://gateway", {"client_certificate": b"pem"}, "belong together"),
    ],
)
async def test_what_does_not_fit_the_endpoint_is_refused(
    connect: Connect,
    endpoint: str,
    arguments: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        connect(endpoint, **arguments)


async def test_a_missing_ca_bundle_is_an_os_error(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect("https://gateway", ca_bundle=tmp_path / "absent.pem")


async def test_the_largest_message_can_be_set(connect: Connect) -> None:
    with serving() as gateway:
        gateway.targets = lambda *_: targets_answer(*["eu-central-1"] * 1000)
        async with connect(gateway.endpoint, max_message_bytes=1000) as client:
            with pytest.raises(imagetasks.ResourceExhaustedError):
                await client.targets()


def options_of(endpoint: str, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "token": None,
        "ca_bundle": None,
        "client_certificate": None,
        "client_key": None,
        "max_message_bytes": channel.DEFAULT_MAX_MESSAGE_BYTES,
        "keepalive": channel.DEFAULT_KEEPALIVE,
        "options": (),
    }
    return dict(channel.route(endpoint, **(arguments | changes)).options)


def test_a_silent_connection_is_probed_unless_told_otherwise() -> None:
    assert options_of("gateway")["grpc.keepalive_time_ms"] == 30_000
    assert options_of("gateway", keepalive=5)["grpc.keepalive_time_ms"] == 5000
    assert "grpc.keepalive_time_ms" not in options_of("gateway", keepalive=0)


def test_this_machine_is_not_reached_through_a_proxy() -> None:
    assert options_of("127.0.0.1:1")["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options_of("gateway")


def test_own_channel_options_override() -> None:
    changed = options_of("gateway", options=[("grpc.max_reconnect_backoff_ms", 7)])
    assert changed["grpc.max_reconnect_backoff_ms"] == 7


def test_the_service_config_retries_within_grpcs_limit() -> None:
    (method,) = json.loads(channel.SERVICE_CONFIG)["methodConfig"]
    assert method["retryPolicy"]["maxAttempts"] <= 5
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    modules = imported_by("import imagetasks.v1, imagetasks.cli")
    assert not modules & {"grpc", "google.protobuf", "rich", "asyncio", "importlib.metadata"}


def test_every_public_name_is_there() -> None:
    assert imagetasks.__version__
    for name in imagetasks.__all__:
        assert getattr(imagetasks, name) is not None
        assert name in dir(imagetasks)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        imagetasks.absent  # noqa: B018 - the access is the point
