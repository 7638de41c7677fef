"""TLS of the gateway: what is refused, what is offered, and that a new certificate needs no restart."""

import asyncio
import base64
import contextlib
import socket
import ssl
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from certificates import Files, chain, days, files
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from gateway_stage import PATIENCE, Describe, Gateway, Serve, eventually, failure
from hypothesis import given, settings
from hypothesis import strategies as st

from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server import tls
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.tls import LOOK_EVERY, Certificates

AUTHORITY = trustme.CA()
FOREIGN = trustme.CA()
GOOD = AUTHORITY.issue_cert("localhost")
Spoil = Callable[[Files], object]


class Clock:
    """Unix seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock_of_files() -> Clock:
    return Clock()


@pytest.fixture
def own(tmp_path: Path) -> Files:
    return files(tmp_path, AUTHORITY)


@pytest.fixture
def client_ca(tmp_path: Path) -> Path:
    path = tmp_path / "clients.pem"
    path.write_bytes(AUTHORITY.cert_pem.bytes())
    return path


@pytest.fixture
def certificates(own: Files, clock_of_files: Clock) -> Certificates:
    return Certificates(tls.Files(own.certificate, own.key), clock_of_files)


@pytest.fixture
def mutual(own: Files, client_ca: Path, clock_of_files: Clock) -> Certificates:
    return Certificates(tls.Files(own.certificate, own.key, client_ca), clock_of_files)


@contextlib.asynccontextmanager
async def caller(gateway: Gateway, client: trustme.LeafCert | None = None) -> AsyncIterator[Any]:
    """The methods, over a connection of its own that trusts the authority."""
    credentials = grpc.ssl_channel_credentials(
        AUTHORITY.cert_pem.bytes(),
        client.private_key_pem.bytes() if client else None,
        chain(client.cert_chain_pems) if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(gateway.address, credentials, options=options) as channel:
        yield StoreImageTaskServiceStub(channel)


def shown(address: str, version: ssl.TLSVersion | None = None) -> tuple[int, str]:
    """The serial number of the certificate that is shown there, and the version that was agreed on."""
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        # What this library no longer does by itself either.
        context.set_ciphers("ALL:@SECLEVEL=0")
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        found: Any = wrapped.getpeercert()
        return int(found["serialNumber"], 16), wrapped.version() or ""


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def der_of(pem: bytes) -> tuple[bytes, bytes]:
    """What a PEM file calls its content, and that."""
    first, *lines, _ = pem.splitlines()
    return first.strip(b"-").removeprefix(b"BEGIN "), base64.b64decode(b"".join(lines))


@st.composite
def damaged(draw: Any) -> tuple[bytes, bytes]:
    """A certificate and its key, as PEM, in one of which a few bytes are others."""
    pair = [GOOD.cert_chain_pems[0].bytes(), GOOD.private_key_pem.bytes()]
    which = draw(st.integers(0, 1))
    name, der = der_of(pair[which])
    spoilt = bytearray(der)
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, len(spoilt) - 1)), draw(st.integers(0, 2))
        spoilt[place : place + length] = draw(st.binary(min_size=1, max_size=2))
    content = base64.encodebytes(spoilt)
    pair[which] = b"-----BEGIN %b-----\n%b-----END %b-----\n" % (name, content, name)
    return pair[0], pair[1]


def encrypt(own: Files) -> None:
    own.key.write_bytes(pem(load_pem_private_key(own.key.read_bytes(), None), b"swordfish"))


# What is done to good files, and what the message begins with.
SPOILT: dict[str, tuple[Spoil, str]] = {
    "no certificate": (lambda own: own.certificate.unlink(), "tls_certificate: "),
    "no key": (lambda own: own.key.unlink(), "tls_key: "),
    "an empty certificate": (lambda own: own.certificate.write_bytes(b""), "tls_certificate: "),
    "half a certificate": (
        lambda own: own.certificate.write_bytes(own.certificate.read_bytes()[:200]),
        "tls_certificate: ",
    ),
    "bytes": (lambda own: own.certificate.write_bytes(bytes(range(256))), "tls_certificate: "),
    "a key for a certificate": (
        lambda own: own.certificate.write_bytes(own.key.read_bytes()),
        "tls_certificate: ",
    ),
    "a certificate for a key": (lambda own: own.key.write_bytes(own.certificate.read_bytes()), "tls_key: "),
    "an encrypted key": (encrypt, "tls_key: "),
    "the key of another": (
        lambda own: own.key.write_bytes(AUTHORITY.issue_cert("a").private_key_pem.bytes()),
        "tls_key: ",
    ),
    "a key that gRPC cannot use": (
        lambda own: own.key.write_bytes(pem(ed25519.Ed25519PrivateKey.generate())),
        "tls_key: ",
    ),
    "a curve that gRPC cannot use": (
        lambda own: own.key.write_bytes(pem(ec.generate_private_key(ec.SECP521R1()))),
        "tls_key: ",
    ),
    "a short key": (
        lambda own: own.key.write_bytes(pem(rsa.generate_private_key(65537, 1024))),
        "tls_key: ",
    ),
    "one that has expired": (
        lambda own: own.issue(AUTHORITY, not_before=days(-3), not_after=days(-1)),
        "tls_certificate: ",
    ),
    "one that is not valid yet": (
        lambda own: own.issue(AUTHORITY, not_before=days(1), not_after=days(3)),
        "tls_certificate: ",
    ),
}
SPOILERS = pytest.mark.parametrize(("spoil", "begins"), SPOILT.values(), ids=SPOILT)


class TestFiles:
    """What is in the files."""

    def test_a_good_certificate_tells_whose_it_is_and_until_when(self, own: Files) -> None:
        own.issue(AUTHORITY, "gateway.example", not_after=days(7))
        certificates = Certificates(tls.Files(own.certificate, own.key), time.time)
        assert certificates.subject
        assert certificates.expires_at == pytest.approx(days(7).timestamp(), abs=60)

    @SPOILERS
    def test_what_cannot_be_used_is_named_by_its_key(self, own: Files, spoil: Spoil, begins: str) -> None:
        spoil(own)
        with pytest.raises(ConfigError) as caught:
            Certificates(tls.Files(own.certificate, own.key), time.time)
        assert str(caught.value).startswith(begins)
        assert "swordfish" not in str(caught.value)

    @pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
    @settings(max_examples=300)
    @given(damaged())
    def test_a_file_of_which_bytes_have_changed_can_be_used_or_is_named_by_its_key(
        self, tmp_path_factory: pytest.TempPathFactory, pair: tuple[bytes, bytes]
    ) -> None:
        where = tmp_path_factory.getbasetemp()
        own = tls.Files(where / "damaged.pem", where / "damaged.key")
        own.certificate.write_bytes(pair[0])
        own.key.write_bytes(pair[1])
        with contextlib.suppress(ConfigError):
            assert tls.load_certificate(own, time.time()).subject is not None

    def test_authorities_that_cannot_be_used_are_named(self, own: Files, client_ca: Path) -> None:
        client_ca.write_text("nobody")
        with pytest.raises(ConfigError, match=r"^tls_client_ca: "):
            Certificates(tls.Files(own.certificate, own.key, client_ca), time.time)

    @pytest.mark.parametrize(
        "key_type", [trustme.KeyType.RSA, trustme.KeyType.ECDSA], ids=lambda each: each.name
    )
    async def test_what_is_accepted_serves_grpc_clients(
        self, tmp_path: Path, serve: Serve, key_type: trustme.KeyType
    ) -> None:
        made = await asyncio.to_thread(files, tmp_path, AUTHORITY, key_type=key_type)
        loaded = await asyncio.to_thread(Certificates, tls.Files(made.certificate, made.key), time.time)
        gateway = await serve(certificates=loaded)
        async with caller(gateway) as stub:
            assert await stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE)

    def test_a_key_that_all_can_read_is_warned_of(self, own: Files, log: list[Any]) -> None:
        Certificates(tls.Files(own.certificate, own.key), time.time)
        assert log == []
        own.key.chmod(0o644)
        Certificates(tls.Files(own.certificate, own.key), time.time)
        assert [(entry["event"], entry["path"]) for entry in log] == [
            ("every user of this machine can read the private key", str(own.key))
        ]


class TestConnections:
    """Who may connect, and how."""

    async def test_a_client_that_trusts_the_authority_is_answered(
        self, serve: Serve, certificates: Certificates
    ) -> None:
        gateway = await serve(certificates=certificates)
        async with caller(gateway) as stub:
            assert (
                len((await stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE)).target_outcomes) == 3
            )

    async def test_a_client_without_tls_is_not(self, serve: Serve, certificates: Certificates) -> None:
        gateway = await serve(certificates=certificates)
        assert (await gateway.refused()).code is grpc.StatusCode.UNAVAILABLE

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_tls_1_2_and_1_3_are_spoken(
        self, serve: Serve, certificates: Certificates, version: ssl.TLSVersion
    ) -> None:
        gateway = await serve(certificates=certificates)
        _, agreed = await asyncio.to_thread(shown, gateway.address, version)
        assert agreed == version.name.replace("_", ".")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
    async def test_older_tls_is_refused(self, serve: Serve, certificates: Certificates, version: str) -> None:
        gateway = await serve(certificates=certificates)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(shown, gateway.address, getattr(ssl.TLSVersion, version))

    async def test_with_client_authorities_only_their_clients_are_answered(
        self, serve: Serve, mutual: Certificates
    ) -> None:
        gateway = await serve(certificates=mutual)
        async with caller(gateway, AUTHORITY.issue_cert("client@example")) as stub:
            assert await stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE)
        expired = AUTHORITY.issue_cert("client@example", not_before=days(-3), not_after=days(-1))
        for stranger in (None, FOREIGN.issue_cert("client@example"), expired):
            async with caller(gateway, stranger) as stub:
                refused = await failure(stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE))
                assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert gateway.boundary.in_flight == 0


class TestRenewal:
    """A certificate changes on disk while calls run."""

    async def test_new_connections_see_the_new_one_and_old_streams_live_on(
        self,
        serve: Serve,
        own: Files,
        certificates: Certificates,
        clock_of_files: Clock,
        log: list[Any],
    ) -> None:
        gateway = await serve(certificates=certificates)
        hold = gateway.world.ec2().hang()
        async with caller(gateway) as stub:
            under_way = stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE)
            await hold.reached()
            leaf = await asyncio.to_thread(own.issue, AUTHORITY)
            before, _ = await asyncio.to_thread(shown, gateway.address)
            # The files are looked at no more often than this.
            clock_of_files.now += LOOK_EVERY
            after, _ = await asyncio.to_thread(shown, gateway.address)
            serial = trustme_serial(leaf)
            assert before != serial
            assert after == serial
            hold.release()
            assert len((await under_way).target_outcomes) == 3
        assert [entry["event"] for entry in log if "certificate" in entry["event"]] == [
            "certificate is in force"
        ]

    @SPOILERS
    async def test_a_bad_one_leaves_the_one_before_and_is_reported_once(  # noqa: PLR0917  # fixtures
        self,
        serve: Serve,
        own: Files,
        certificates: Certificates,
        clock_of_files: Clock,
        log: list[Any],
        spoil: Spoil,
        begins: str,
    ) -> None:
        gateway = await serve(certificates=certificates)
        good, _ = await asyncio.to_thread(shown, gateway.address)
        await asyncio.to_thread(spoil, own)
        for _ in range(3):
            clock_of_files.now += LOOK_EVERY
            assert (await asyncio.to_thread(shown, gateway.address))[0] == good
        (refused,) = [entry for entry in log if "cannot be used" in entry["event"]]
        assert refused["text"].startswith(begins)
        # And a good one mends it.
        leaf = await asyncio.to_thread(own.issue, AUTHORITY)
        clock_of_files.now += LOOK_EVERY
        assert (await asyncio.to_thread(shown, gateway.address))[0] == trustme_serial(leaf)

    async def test_a_bad_one_is_reported_once_also_where_nobody_connects(
        self,
        own: Files,
        certificates: Certificates,
        log: list[Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        look, looks = certificates.look, Counter[str]()

        def counted() -> None:
            look()
            looks["done"] += 1

        monkeypatch.setattr(certificates, "look", counted)
        looking, told = asyncio.create_task(certificates.look_after(0.001)), [certificates.is_up]
        for spoil in (lambda: own.key.write_bytes(b""), lambda: own.issue(AUTHORITY)):
            await asyncio.to_thread(spoil)
            for _ in range(3):
                before = looks.total()
                await eventually(lambda before=before: looks.total() > before)  # type: ignore[misc]
            told.append(certificates.is_up)
        looking.cancel()
        assert told == [True, False, True]
        assert [entry["event"] for entry in log] == [
            "certificate cannot be used, the one before stays",
            "certificate is in force",
        ]

    def test_one_that_was_too_early_is_taken_when_its_time_comes(
        self, own: Files, certificates: Certificates, clock_of_files: Clock
    ) -> None:
        own.issue(AUTHORITY, not_before=days(1), not_after=days(30))
        certificates.look()
        assert (
            certificates.expires_at < days(29).timestamp() or certificates.expires_at > days(31).timestamp()
        )
        clock_of_files.now += 2 * 86400
        certificates.look()
        assert certificates.expires_at == pytest.approx(days(30).timestamp(), abs=60)

    async def test_a_client_of_an_authority_that_went_is_refused(
        self, serve: Serve, client_ca: Path, mutual: Certificates, clock_of_files: Clock
    ) -> None:
        gateway = await serve(certificates=mutual)
        ours, theirs = AUTHORITY.issue_cert("a@example"), FOREIGN.issue_cert("b@example")
        await asyncio.to_thread(client_ca.write_bytes, FOREIGN.cert_pem.bytes())
        clock_of_files.now += LOOK_EVERY
        async with caller(gateway, theirs) as stub:
            assert await stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE)
        async with caller(gateway, ours) as stub:
            refused = await failure(stub.DescribeStoreImageTasks(Describe(), timeout=PATIENCE))
            assert refused.code is grpc.StatusCode.UNAVAILABLE

    def test_new_settings_may_name_other_files(
        self, own: Files, certificates: Certificates, tmp_path: Path
    ) -> None:
        other = files(tmp_path, AUTHORITY, "other", not_after=days(5))
        new = Settings(tls_certificate=other.certificate, tls_key=other.key)
        use = certificates.prepare(new)
        assert certificates.expires_at > days(6).timestamp()
        use()
        assert certificates.expires_at < days(6).timestamp()
        other.key.write_bytes(own.key.read_bytes())
        with pytest.raises(ConfigError, match=r"^tls_key: "):
            certificates.prepare(new)


def trustme_serial(leaf: trustme.LeafCert) -> int:

    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number
