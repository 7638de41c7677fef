"""JWTs: with which key one is verified, and what it then proves. Pure: keys and time are handed in.

Nothing here tells why a token is not believed, but that it has expired, and that only of one whose signature
was good.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from imagetasks_server.access import expired
from imagetasks_server.caller_settings import JwtSettings
from imagetasks_server.identity import Identity, invalid

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OKPKey, RSAKey

Key: TypeAlias = "RSAKey | ECKey | OKPKey"

MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
# The last second that a datetime has.
_LATEST: Final = 253402300799.0

_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "Ed25519": "Ed25519"}


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
