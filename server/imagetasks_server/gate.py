"""Who may come in: decided for each call before anything shared is looked at, and when that may change."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from cachetools import LRUCache

from imagetasks_server.access import Access, expired
from imagetasks_server.auth import Policy
from imagetasks_server.clock import Clock
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.errors import Error
from imagetasks_server.identity import ANONYMOUS, Identity, Presented, digest_of, invalid, presented
from imagetasks_server.jwks import Jwks, Published
from imagetasks_server.jwt_tokens import Key, Keys, header_of, verified
from imagetasks_server.permission import Permission

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
Connection: TypeAlias = Mapping[str, Iterable[bytes]]

Shown: TypeAlias = tuple[Metadata, Connection]

# JWTs whose signatures are remembered, about 1 KiB each; and decisions upon tokens.
BELIEVED: Final = 1024


class Decision(NamedTuple):
    """Who calls a method, and what of it that caller may see.

    Attributes:
        identity: What was proven.
        permission: What may be seen.
        caller: Whom the log names; empty: nobody was asked.
        policy: By what this was decided.
    """

    identity: Identity
    permission: Permission
    caller: str
    policy: Policy


class Stay:
    """A call that is inside."""

    __slots__ = ("_access", "_inside", "_who")

    def __init__(
        self, inside: dict[Access, tuple[Identity, str]], access: Access, identity: Identity, method: str
    ) -> None:
        self._inside = inside
        self._access = access
        self._who = (identity, method)

    def __enter__(self) -> Access:
        self._inside[self._access] = self._who
        return self._access

    def __exit__(self, *_: object) -> None:
        del self._inside[self._access]
        self._access.left()


class Gate:
    """Decides who may come in.

    Args:
        settings: Who may.
        clock: Unix seconds.

    Attributes:
        asks_for_certificates: Whether clients show certificates.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        # Settled at the start, as whether there is TLS is.
        self.asks_for_certificates = settings.tls_client_ca is not None
        self._clock = clock
        # Settled at the start too: a file that was emptied must not let everybody in.
        self._is_open = settings.is_open
        self._default_quota = settings.limits.default_quota
        self._policy = self._policy_of(settings)
        self._keys = None if settings.jwt is None else Jwks(settings.jwt, clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inside: dict[Access, tuple[Identity, str]] = {}
        self._retired: list[Jwks] = []
        # A signature costs more than all the rest of a call.
        self._believed: LRUCache[bytes, tuple[Key, object, Identity]] = LRUCache(BELIEVED)
        self._decided: dict[tuple[bytes, str], tuple[Decision, Keys | None]] = {}

    @property
    def keys_up(self) -> bool | None:
        """Whether the newest fetch of the token issuer's keys succeeded; None: there was none."""
        return None if self._keys is None else self._keys.is_up

    def check(self, settings: Settings) -> None:
        """Whether these settings may come into force.

        Raises:
            ConfigError: They name nobody, and so would let everybody in where callers had been named.
        """
        if settings.names_nobody and not self._policy.is_open:
            raise ConfigError("callers: nobody is named any more; to let everybody in takes a restart")

    def replace(self, settings: Settings) -> None:
        """From now on these settings say who may. Every call under way is decided again, at once.

        A JWT whose keys have changed meanwhile stays good until it expires.
        """
        before = self._policy.jwt
        # The last good keys stay where their source does.
        if (settings.jwt and settings.jwt.source) != (before and before.source):
            if self._keys is not None:
                self._retired.append(self._keys)
            self._keys = None if settings.jwt is None else Jwks(settings.jwt, self._clock)
        was_open = self._policy.is_open
        self._policy = self._policy_of(settings)
        self._decided.clear()
        for access, (identity, method) in tuple(self._inside.items()):
            try:
                known = self._known(access.shown) if was_open else identity
                self._inside[access] = (known, method)
                if was_open:
                    access.expire(known.expires)
                access.decide(self._policy.permission(known, method))
            except Error as error:
                access.end(error)

    def _known(self, shown: Shown) -> Identity:
        """Who came in while nobody was asked; a JWT takes longer to look at, so its caller comes again."""
        try:
            credential = presented(*shown)
        except Error:
            return ANONYMOUS
        if credential.token is not None:
            return self._policy.static(credential.token) or ANONYMOUS
        certificate = credential.certificate
        return (
            ANONYMOUS
            if certificate is None
            else Identity(certificate=certificate, expires=certificate.expires)
        )

    def _policy_of(self, settings: Settings) -> Policy:
        return Policy(
            settings.callers,
            settings.anonymous,
            settings.jwt,
            is_open=self._is_open and settings.names_nobody,
            default_quota=self._default_quota,
        )

    def known(self, metadata: Metadata, method: str) -> Decision | None:
        """What was decided before upon the same token, if that still stands; nothing is waited for."""
        if self._policy.is_open:
            return Decision(ANONYMOUS, self._policy.permission(ANONYMOUS, method), "", self._policy)
        token = _lone_token(metadata)
        remembered = token and self._decided.get((digest_of(token), method))
        if not remembered:
            return None
        decision, keys = remembered
        # Keys that are due to be fetched again are no reason any more.
        if keys is not None and (self._keys is None or self._keys.fresh is not keys):
            return None
        return decision if self.stands(decision) else None

    def stands(self, decision: Decision) -> bool:
        """Whether it would be the same now: no new policy is in force, no credential has ended."""
        expires = decision.identity.expires
        return decision.policy is self._policy and (expires == math.inf or self._clock() < expires)

    async def decided(self, metadata: Metadata, connection: Connection, method: str) -> Decision:
        """Who calls.

        Args:
            metadata: The call's.
            connection: What gRPC says of the connection, by property; nothing of it where no certificates
                are asked for.
            method: The method's name.

        Raises:
            Error: The call may not come in.
        """
        policy = self._policy
        identity = await self._identity(presented(metadata, connection))
        # A connection outlives the certificate that it was opened with.
        if self._clock() >= identity.expires:
            raise expired()
        permission = self._policy.permission(identity, method)
        decision = Decision(identity, permission, self._policy.name(identity, permission), self._policy)
        token = _lone_token(metadata)
        keys = None if identity.claims is None or self._keys is None else self._keys.fresh
        # While keys were waited for, the policy and the keys may have become others.
        if token is not None and policy is self._policy and (identity.claims is None or keys is not None):
            if len(self._decided) >= BELIEVED:
                self._decided.clear()
            self._decided[digest_of(token), method] = decision, keys
        return decision

    def stay(self, decision: Decision, shown: Shown, method: str) -> Stay:
        """A call's access, as long as the context lasts that this is."""
        # Found out once: before Python 3.12 it is a call to the system each time.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        identity, permission, caller, _ = decision
        access = Access(permission, caller, identity.expires, asyncio.current_task(loop))
        if self._policy.is_open:
            access.shown = (tuple(shown[0]), dict(shown[1]))
        return Stay(self._inside, access, identity, method)

    def take_keys(self, published: Published | None) -> None:
        """What the issuer's keys are by now, where that was found out: the last good ones from now on."""
        if self._keys is not None and published is not None:
            self._keys.take(published)

    async def close(self) -> None:
        """End what fetches keys."""
        for each in (*self._retired, self._keys):
            if each is not None:
                await each.close()

    async def _identity(self, shown: Presented) -> Identity:
        token, certificate = shown.token, shown.certificate
        if token is None:
            if certificate is None:
                return ANONYMOUS
            return Identity(certificate=certificate, expires=certificate.expires)
        if (static := self._policy.static(token)) is not None:
            return static
        header = header_of(token)
        keys, rules = self._keys, self._policy.jwt
        if header is None or keys is None or rules is None or header.algorithm not in rules.algorithms:
            raise invalid()
        key = await keys.key(header)
        digest = digest_of(token)
        known = self._believed.get(digest)
        # The very key: one that was withdrawn or exchanged proves nothing. Expiry is looked at each time.
        if known is None or known[0] is not key or known[1] is not rules:
            identity = verified(token, header, key, rules, self._clock())
            known = self._believed[digest] = (key, rules, identity)
        return known[2]


def _lone_token(metadata: Metadata) -> str | None:
    """What stands for a token, if it stands there once."""
    token = None
    for key, value in metadata:
        if key == "authorization":
            if token is not None or not isinstance(value, str):
                return None
            token = value
    return token
