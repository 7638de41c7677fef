"""What a call presents, and what is proven by it. Pure.

A call presents a bearer token, else a client certificate, else nothing. What is presented decides alone: a
bad token is refused, whatever else there is. Nothing here tells why a credential is not believed.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from imagetasks_server.errors import Unauthenticated

# gRPC refuses metadata above 8 KiB by itself.
MAX_TOKEN_CHARS: Final = 8192

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a verified client certificate says.

    Attributes:
        spiffe: Its SPIFFE id; empty if it has none, or more than the one that there may be.
        dns: Its DNS names, in lower case.
        expires: Unix seconds.
    """

    spiffe: str
    dns: tuple[str, ...]
    expires: float


@dataclass(frozen=True, slots=True)
class Presented:
    """What a call presents.

    Attributes:
        token: The bearer token.
        certificate: The client certificate; gRPC has verified its chain.
    """

    token: str | None = field(default=None, repr=False)
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What was proven of a caller; nothing: anonymous.

    Attributes:
        digest: SHA-256 of its static token.
        certificate: Its certificate.
        claims: Its JWT's.
        algorithm: Of the JWT's signature.
        expires: Unix seconds at which the proof ends.
    """

    digest: bytes | None = field(default=None, repr=False)
    certificate: Certificate | None = None
    claims: Mapping[str, Any] | None = field(default=None, repr=False)
    algorithm: str = ""
    expires: float = math.inf

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing was proven."""
        return self.digest is None and self.certificate is None and self.claims is None


ANONYMOUS: Final = Identity()


def presented(
    metadata: Iterable[tuple[str, str | bytes]], connection: Mapping[str, Iterable[bytes]]
) -> Presented:
    """Read what a call presents.

    Args:
        metadata: The call's.
        connection: What gRPC says of the connection, by property.

    Raises:
        Unauthenticated: There is a credential that is none.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) > 1:
        raise invalid()
    token = None
    if values:
        scheme, _, token = (values[0] if isinstance(values[0], str) else "").partition(" ")
        if scheme.lower() != "bearer" or len(token) > MAX_TOKEN_CHARS or not is_token(token):
            raise invalid()
    pem = next(iter(connection.get("x509_pem_cert", ())), None)
    return Presented(token, None if pem is None else _certificate(pem))


@lru_cache(maxsize=1024)
def _certificate(pem: bytes) -> Certificate:
    from cryptography import x509  # noqa: PLC0415  # 6 MiB, of client certificates alone

    # What gRPC let through may still be more than can be read: a name of a rare kind, an extension twice.
    unread = (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        expires = certificate.not_valid_after_utc.timestamp()
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return Certificate("", (), expires)
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        dns = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except unread:
        raise invalid() from None
    # A SPIFFE certificate has exactly one URI.
    spiffe = uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""
    return Certificate(spiffe, dns, expires)


def is_token(text: str) -> bool:
    """Whether these are the characters of a bearer token."""
    return _TOKEN.fullmatch(text) is not None


def digest_of(token: str) -> bytes:
    """What is configured of a static token, as bytes."""
    return hashlib.sha256(token.encode()).digest()


def invalid() -> Unauthenticated:
    """The credential is not believed, and nobody is told why."""
    return Unauthenticated("CREDENTIAL_INVALID", "the credential is not valid here")
