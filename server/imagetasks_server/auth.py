"""Who calls, from what a call presents, and what that caller may see. Pure: keys and time are handed in.

A call presents a bearer token, else a client certificate, else nothing. What is presented decides alone: a
bad token is refused, whatever else there is. Nothing here tells why a credential is not believed, but that
it has expired, and that only of one whose signature was good.
"""

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from imagetasks_server.access import expired
from imagetasks_server.caller_settings import AnonymousSettings, CallerSettings, Granted, JwtSettings
from imagetasks_server.errors import PermissionDenied, Unauthenticated
from imagetasks_server.limits import NO_QUOTA, Quota
from imagetasks_server.permission import Grant, Permission, matches, matches_any

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OKPKey, RSAKey

Key: TypeAlias = "RSAKey | ECKey | OKPKey"

# gRPC refuses metadata above 8 KiB by itself.
MAX_TOKEN_CHARS: Final = 8192
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_SUBJECT_CHARS: Final = 128
# The last second that a datetime has.
_LATEST: Final = 253402300799.0

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SUBJECT = re.compile(rf"[A-Za-z0-9_.@:/|+=-]{{1,{MAX_SUBJECT_CHARS}}}")
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "Ed25519": "Ed25519"}


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

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        expires = certificate.not_valid_after_utc.timestamp()
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return Certificate("", (), expires)
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        dns = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except ValueError:
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


class Policy:
    """Who may see what.

    Args:
        callers: The entries. All that fit a caller give it their grants; the first of them its name and
            limits.
        anonymous: What may be seen without a credential.
        jwt: Which JWTs are believed.
        is_open: Anybody may see everything, and nobody is asked who he is.
        default_quota: How much of the gateway is used by whom no entry says how much.
    """

    def __init__(
        self,
        callers: Sequence[CallerSettings],
        anonymous: AnonymousSettings | None,
        jwt: JwtSettings | None,
        *,
        is_open: bool = False,
        default_quota: Quota = NO_QUOTA,
    ) -> None:
        self.is_open = is_open
        self._default_quota = default_quota
        self._everything = Permission(quota=default_quota)
        self.jwt = jwt
        self._callers = tuple(callers)
        self._anonymous = anonymous
        self._digests: dict[bytes, tuple[int, ...]] = {}
        for index, entry in enumerate(callers):
            for digest in {bytes.fromhex(each) for each in entry.token_sha256}:
                self._digests[digest] = (*self._digests.get(digest, ()), index)
        # One object for each answer: a permission remembers what it allows.
        self._made: dict[tuple[tuple[int, ...], str], Permission] = {}

    def static(self, token: str) -> Identity | None:
        """Whose static token this is."""
        given = digest_of(token)
        found = False
        for each in self._digests:
            # Each is compared in full, whichever fits: the time tells nothing.
            found |= hmac.compare_digest(each, given)
        return Identity(digest=given) if found else None

    def permission(self, identity: Identity, method: str) -> Permission:
        """What somebody may see by a method.

        Raises:
            Unauthenticated: A credential is needed, or this one is not believed any more.
            PermissionDenied: It is nobody that the configuration knows, or not permitted to call this.
        """
        if self.is_open:
            return self._everything
        if identity.is_anonymous:
            if self._anonymous is None:
                raise Unauthenticated("CREDENTIAL_MISSING", "a credential is needed, and none was sent")
            return self._made_of("anonymous", (-1,), [self._anonymous], method)
        if identity.claims is not None:
            check_claims(identity.claims, identity.algorithm, self.jwt)
        fitting = self._fitting(identity)
        if not fitting:
            if identity.digest is not None:
                raise invalid()
            raise PermissionDenied(
                "CALLER_UNKNOWN", "the credential is good, but nothing is permitted to this caller"
            )
        entries = [self._callers[index] for index in fitting]
        return self._made_of(entries[0].name, fitting, entries, method)

    def _fitting(self, identity: Identity) -> tuple[int, ...]:
        if identity.digest is not None:
            # Proven by `static`, if not by this configuration.
            return self._digests.get(identity.digest, ())
        return tuple(index for index, each in enumerate(self._callers) if _fits(each, identity))

    def name(self, identity: Identity, permission: Permission) -> str:
        """Whom the log names: the entry, and whom a JWT names."""
        if identity.claims is None or self.jwt is None or self.is_open:
            return permission.caller
        subject = str(identity.claims[self.jwt.name_claim])
        if not _SUBJECT.fullmatch(subject):
            subject = hashlib.sha256(subject.encode(errors="replace")).hexdigest()[:16]
        return f"{permission.caller}:{subject}"

    def _made_of(
        self, name: str, fitting: tuple[int, ...], entries: Sequence[Granted], method: str
    ) -> Permission:
        made = self._made.get((fitting, method))
        if made is None:
            granting = [each for each in entries if matches_any(each.methods, method)]
            grants = tuple(Grant(each.accounts, each.regions) for each in granting)
            made = self._made[fitting, method] = Permission(
                name, grants, entries[0].quota.or_else(self._default_quota)
            )
        if not made.grants:
            raise PermissionDenied("METHOD_NOT_PERMITTED", f"this caller may not call {method}")
        return made


def _fits(entry: CallerSettings, identity: Identity) -> bool:
    if identity.claims is not None:
        claims = identity.claims
        return bool(entry.claims) and all(
            _has_claim(claims.get(name), patterns) for name, patterns in entry.claims.items()
        )
    if identity.certificate is None:
        return False
    if identity.certificate.spiffe and matches_any(entry.spiffe, identity.certificate.spiffe):
        return True
    return any(_is_host(pattern, name) for pattern in entry.dns for name in identity.certificate.dns)


def _has_claim(value: object, patterns: Iterable[str]) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(matches_any(patterns, each) for each in values if isinstance(each, str))


def _is_host(pattern: str, name: str) -> bool:
    # A wildcard of the certificate's own is no host.
    return "*" not in name and name.count(".") == pattern.count(".") and matches(pattern, name)


@dataclass(frozen=True, slots=True)
class Header:
    """A JWT's header, not believed yet."""

    algorithm: str
    key_id: str | None


def header_of(token: str) -> Header | None:
    """The header of what looks like a JWT; None if it does not."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004  # header, claims, signature
        return None
    try:
        header = json.loads(
            base64.b64decode(parts[0] + "=" * (-len(parts[0]) % 4), altchars=b"-_", validate=True)
        )
    except (ValueError, binascii.Error, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None):
        return None
    return Header(algorithm, key_id)


class Keys:
    """An issuer's public keys.

    Args:
        text: A JSON Web Key Set. Keys of other kinds or uses are left out.

    Raises:
        ValueError: It is none, or has no key that could be used.
    """

    def __init__(self, text: bytes) -> None:
        try:
            listed = json.loads(text)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("is not a JSON Web Key Set") from None
        if not isinstance(listed, list):
            raise ValueError("is not a JSON Web Key Set")  # noqa: TRY004  # of a document, not of a program
        self._keys = [key for each in listed[:MAX_KEYS] if (key := _key(each)) is not None]
        if not self._keys:
            raise ValueError("has no public key that could be used")

    def find(self, header: Header) -> "Key | None":
        """The key that a token says it was signed with; without an id only if there is no choice."""
        fitting = [
            key
            for key in self._keys
            if (header.key_id is None or key.get("kid") == header.key_id) and _signs(key, header.algorithm)
        ]
        return fitting[0] if len(fitting) == 1 else None


def _key(value: object) -> "Key | None":
    from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey  # noqa: PLC0415  # 9 MiB, of JWTs alone

    if not isinstance(value, dict) or value.get("kty") not in {"RSA", "EC", "OKP"}:
        return None
    if value.get("use", "sig") != "sig" or "verify" not in (value.get("key_ops") or ["verify"]):
        return None
    # A published private key is the issuer's accident; what is needed of it is public.
    public = {
        name: each for name, each in value.items() if name not in {"d", "p", "q", "dp", "dq", "qi", "oth"}
    }
    try:
        key = JWKRegistry.import_key(public)
    except Exception:  # noqa: BLE001  # one key of another kind makes the others no worse
        return None
    if not isinstance(key, RSAKey | ECKey | OKPKey):
        return None
    if isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS:
        return None
    return key


def _signs(key: Key, algorithm: str) -> bool:
    if key.get("alg") not in {None, algorithm}:
        return algorithm == "Ed25519" and key.get("alg") == "EdDSA" and key.get("crv") == "Ed25519"
    if algorithm in _CURVES:
        return bool(key.get("crv") == _CURVES[algorithm])
    return key.key_type == "RSA" and algorithm[:2] in {"RS", "PS"}


def verified(token: str, header: Header, key: Key, rules: JwtSettings, now: float) -> Identity:
    """What a JWT proves.

    Raises:
        Unauthenticated: Nothing.
    """
    from joserfc import jwt  # noqa: PLC0415  # as above
    from joserfc.errors import ExpiredTokenError, JoseError  # noqa: PLC0415

    if header.algorithm not in rules.algorithms:
        raise invalid()
    registry = jwt.JWTClaimsRegistry(now=int(now), leeway=int(rules.leeway), exp={"essential": True})
    try:
        claims = jwt.decode(token, key, algorithms=[header.algorithm]).claims
        check_claims(claims, header.algorithm, rules)
        registry.validate(claims)
        expires = float(min(claims["exp"], _LATEST)) + rules.leeway
    except ExpiredTokenError:
        raise expired() from None
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise invalid() from None
    return Identity(claims=claims, algorithm=header.algorithm, expires=expires)


def check_claims(claims: Mapping[str, Any], algorithm: str, rules: JwtSettings | None) -> None:
    """Whether a JWT of these claims is from the right issuer, for this gateway, and names its caller.

    Raises:
        Unauthenticated: It is not.
    """
    if rules is None or algorithm not in rules.algorithms or claims.get("iss") != rules.issuer:
        raise invalid()
    audience = claims.get("aud")
    if not set(rules.audience).intersection(
        each for each in (audience if isinstance(audience, list) else [audience]) if isinstance(each, str)
    ):
        raise invalid()
    name = claims.get(rules.name_claim)
    if not isinstance(name, str) or not name:
        raise invalid()


def invalid() -> Unauthenticated:
    """The credential is not believed, and nobody is told why."""
    return Unauthenticated("CREDENTIAL_INVALID", "the credential is not valid here")
