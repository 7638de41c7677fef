"""What a caller may see, from what was proven of it. Pure."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Final

from imagetasks_server.caller_settings import AnonymousSettings, CallerSettings, Granted, JwtSettings
from imagetasks_server.errors import PermissionDenied, Unauthenticated
from imagetasks_server.identity import Identity, digest_of, invalid
from imagetasks_server.jwt_tokens import check_claims
from imagetasks_server.limits import NO_QUOTA, Quota
from imagetasks_server.permission import Grant, Permission, matches, matches_any

MAX_SUBJECT_CHARS: Final = 128

_SUBJECT = re.compile(rf"[A-Za-z0-9_.@:/|+=-]{{1,{MAX_SUBJECT_CHARS}}}")


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
