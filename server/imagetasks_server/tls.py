"""The gateway's own certificate: loaded, checked, and renewed while it serves.

A certificate that changes on disk is in force from the next connection on; connections that stand keep
theirs. One that cannot be used changes nothing, and is reported once, also where nobody connects.
"""

import asyncio
import contextlib
import datetime as dt
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from imagetasks_server.clock import Clock
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

# Seconds between two looks at the files, however many connections come; and however few.
LOOK_EVERY: Final = 1.0
LOOK_AT_LAST: Final = 10.0

# With any other, gRPC's own clients find no signature algorithm in common.
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_LEAST_RSA_BITS: Final = 2048
_WRONG_KEY: Final = f"must be of RSA, {_LEAST_RSA_BITS} bits or more, or of the curve P-256 or P-384"


@dataclass(frozen=True, slots=True)
class Files:
    """Where the PEM files are.

    Attributes:
        certificate: The gateway's, and those between it and its authority.
        key: Its private key.
        client_ca: The authorities of clients; None: clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Files | None":
        """Those of the settings; None: there is no TLS."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)

    def state(self) -> tuple[object, ...]:
        """Differs once one of them was replaced or written. Blocks for a moment."""
        return tuple(_state(path) for path in (self.certificate, self.key, self.client_ca) if path)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What gRPC needs, checked.

    Attributes:
        configuration: As gRPC takes it.
        subject: Whose it is, as "CN=gateway.example".
        expires_at: Unix seconds.
    """

    configuration: grpc.ServerCertificateConfiguration
    subject: str
    expires_at: float


def load_certificate(files: Files, now: float) -> Certificate:
    """Read and check the files. Blocks.

    Args:
        files: Where they are.
        now: Unix seconds.

    Raises:
        ConfigError: A file cannot be used, or they do not fit together; the text names the key.
    """
    chain = _certificates("tls_certificate", files.certificate)
    leaf = chain[0]
    try:
        expires, begins = leaf.not_valid_after_utc, leaf.not_valid_before_utc
        subject = leaf.subject.rfc4514_string()
    except ValueError:
        raise ConfigError(f"tls_certificate: {files.certificate} cannot be read to its end") from None
    if expires.timestamp() <= now:
        raise ConfigError(f"tls_certificate: {files.certificate} expired on {_day(expires)}")
    if begins.timestamp() > now:
        raise ConfigError(f"tls_certificate: {files.certificate} is not valid before {_day(begins)}")
    key = _private_key(files.key)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        certified = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"tls_certificate: {files.certificate} is for a kind of key that is unknown"
        ) from None
    if public != certified:
        raise ConfigError(f"tls_key: {files.key} is not the key of {files.certificate}")
    authorities = _certificates("tls_client_ca", files.client_ca) if files.client_ca else None
    # Written anew: gRPC's reader knows fewer forms, and what it cannot read it tells nobody.
    configuration = grpc.ssl_server_certificate_configuration(
        [(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _pem(chain))],
        None if authorities is None else _pem(authorities),
    )
    return Certificate(configuration, subject, expires.timestamp())


class Certificates:
    """The certificate in force.

    Args:
        files: Where it is.
        clock: Unix seconds.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, files: Files, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._state = files.state()
        self._reported = ""
        self._looked = clock()
        # C-core asks from threads of its own.
        self._lock = threading.Lock()
        self._current = self._load(files)

    @property
    def is_up(self) -> bool:
        """Whether the newest look found what can be used."""
        return not self._reported

    @property
    def expires_at(self) -> float:
        """When the certificate in force expires, in Unix seconds."""
        return self._current.expires_at

    @property
    def subject(self) -> str:
        """Whose it is, as "CN=gateway.example"."""
        return self._current.subject

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server. TLS 1.2 or newer: C-core offers nothing older.

        Whether clients need a certificate is settled here; which one of them is good may change later.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._current.configuration,
            self._at_a_connection,
            require_client_authentication=self._files.client_ca is not None,
        )

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read what new settings name, or what is named by now. Blocks.

        Returns:
            What puts it in force.

        Raises:
            ConfigError: It cannot be used.
        """
        files = Files.of(settings)
        if files is None or (files.client_ca is None) != (self._files.client_ca is None):
            # That needs another listener: a restart.
            return lambda: None
        state = files.state()
        certificate = self._load(files)

        def use() -> None:
            with self._lock:
                self._files = files
                self._use(certificate, state)

        return use

    def look(self) -> None:
        """Take what has changed on disk, if it is good; else report it, once. Blocks for a moment."""
        with self._lock:
            state = self._files.state()
            # What was refused may become good without a change: its time may come.
            if state == self._state and not self._reported:
                return
            try:
                certificate = self._load(self._files)
            except ConfigError as error:
                if str(error) != self._reported:
                    self._reported = str(error)
                    self._tell_refused()
                return
            self._use(certificate, state)

    async def look_after(self, every: float = LOOK_AT_LAST) -> None:
        """Look again and again, until cancelled: a fault is to be known before it is met.

        Args:
            every: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(self.look)

    def _at_a_connection(self) -> grpc.ServerCertificateConfiguration:
        now = self._clock()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self.look()
        return self._current.configuration

    def _use(self, certificate: Certificate, state: tuple[object, ...]) -> None:
        self._current, self._state, self._reported = certificate, state, ""
        self.tell()

    def tell(self) -> None:
        """Log which certificate is in force."""
        log.info(Event.CERTIFICATE, subject=self.subject, expires=_time(self.expires_at))

    def _tell_refused(self) -> None:
        log.error(Event.CERTIFICATE_REFUSED, text=self._reported, expires=_time(self.expires_at))

    def _load(self, files: Files) -> Certificate:
        certificate = load_certificate(files, self._clock())
        # Whoever can read it can be the gateway. It may be gone by now.
        with contextlib.suppress(OSError):
            if files.key.stat().st_mode & stat.S_IROTH:
                log.warning(Event.KEY_EXPOSED, path=str(files.key))
        return certificate


def _state(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {os.strerror(error.errno or 0)}") from None


def _certificates(key: str, path: Path) -> list[x509.Certificate]:
    content = _read(key, path)
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, x509.InvalidVersion):
        raise ConfigError(f"{key}: {path} has no certificate in PEM that can be read") from None


def _private_key(path: Path) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    content = _read("tls_key", path)
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(f"tls_key: {path} is encrypted, and nobody could enter its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"tls_key: {path} has no private key in PEM that can be read") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key
    raise ConfigError(f"tls_key: {path} {_WRONG_KEY}")


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _day(time_: dt.datetime) -> str:
    return f"{time_:%Y-%m-%d %H:%M} UTC"


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()
