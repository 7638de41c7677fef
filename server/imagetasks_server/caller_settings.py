"""How callers are configured: who they are, and what each may see."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from imagetasks_server.account_settings import FilePath, Table
from imagetasks_server.amounts import Count, PerSecond, Seconds
from imagetasks_server.contract import SERVICE
from imagetasks_server.limits import Quota
from imagetasks_server.permission import matches

METHODS: Final = tuple(method.name for method in SERVICE.methods)

# All of them asymmetric: whoever can check a signature could forge one that is made with a shared key.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"
]

_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._*-]+)*")
_DNS = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("at least one")
    return values


Digests = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...], BeforeValidator(_listed)
]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
AccountPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*-]+$", max_length=128)]
AccountPatterns = Annotated[tuple[AccountPattern, ...], BeforeValidator(_listed), AfterValidator(_some)]
RegionPattern = Annotated[str, StringConstraints(pattern=r"^[a-z0-9*-]+$", max_length=64)]
RegionPatterns = Annotated[tuple[RegionPattern, ...], BeforeValidator(_listed), AfterValidator(_some)]
MethodPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z*]+$", max_length=64)]
MethodPatterns = Annotated[tuple[MethodPattern, ...], BeforeValidator(_listed), AfterValidator(_some)]
ClaimPatterns = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_some)]
ClaimName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
# Whom the metrics and the log tell of besides: who showed no credential, the gateway itself, and callers that
# the configuration has named meanwhile no more.
OWN_NAMES: Final = frozenset({"anonymous", "gateway", "other"})


def _of_nobody_else(name: str) -> str:
    if name.lower() in OWN_NAMES:
        raise ValueError(f"{name!r} means something else in metrics and the log; choose another name")
    return name


CallerName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$"),
    AfterValidator(_of_nobody_else),
]


class Granted(Table):
    """What somebody may see, and how much of the gateway it may use. In patterns "*" stands for anything."""

    accounts: AccountPatterns
    """The gateway's names of accounts, as patterns. What fits none is as if it did not exist."""
    regions: RegionPatterns = ("*",)
    """Regions, as patterns. Absent: all that these accounts have."""
    methods: MethodPatterns = ("*",)
    """Methods of the contract, as patterns: "ListTargets", "Describe*". Absent: all; each reads only."""
    calls_per_second: PerSecond | None = None
    """Calls that may be begun in a second, in the long run. Absent: as `limits` says. Less: a program
    that asks too often is told so sooner."""
    burst: Count | None = None
    """Calls that may be begun at once. Absent: as many as in one second, one at least."""
    concurrent_calls: Count | None = None
    """Calls that may be under way. Absent: as `limits` says."""
    open_streams: Count | None = None
    """Streams and watches that may be open. Absent: as `limits` says."""

    @field_validator("methods")
    @classmethod
    def _exist(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for each in methods:
            if not any(matches(each, name) for name in METHODS):
                raise ValueError(f"{each!r} is none of {', '.join(METHODS)}, and fits none")
        return methods

    @model_validator(mode="after")
    def _burst_of_something(self) -> Self:
        if self.burst is not None and self.calls_per_second is None:
            raise ValueError("burst: there is no calls_per_second that it belongs to")
        return self

    @property
    def quota(self) -> Quota:
        """How much of the gateway it may use."""
        return Quota(self.calls_per_second, self.burst, self.concurrent_calls, self.open_streams)


class CallerSettings(Granted):
    """A caller: any one of the credentials makes it known."""

    name: CallerName
    """What the log calls it. Its limits are counted under this name; those of whom a JWT names
    under that name too, each for itself."""
    token_sha256: Digests = ()
    """SHA-256, in hexadecimal, of the bearer tokens it may send; `imagetasks-server hash-token` makes them.
    Two: the old one and the new one while they change."""
    spiffe: Names = ()
    """SPIFFE ids that its certificate may have, as patterns: "spiffe://example.org/build/*". A "*" stands for
    anything, also for more than one part of the path; the trust domain has none."""
    dns: Names = ()
    """DNS names that its certificate may have. In "*.example.org" the star stands for one label."""
    claims: Mapping[ClaimName, ClaimPatterns] = {}
    """Claims that its JWT must all have, each with patterns of which one must fit its value, or one of its
    values where that is a list."""

    @field_validator("spiffe")
    @classmethod
    def _spiffe_ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        # What stands there may be a secret that belongs elsewhere: it is told by its place.
        for number, each in enumerate(ids, 1):
            if not _SPIFFE.fullmatch(each):
                raise ValueError(f"number {number} is not a SPIFFE id, as spiffe://example.org/build/*")
        return ids

    @field_validator("dns")
    @classmethod
    def _dns_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for number, each in enumerate(names, 1):
            if not _DNS.fullmatch(each):
                raise ValueError(f"number {number} is not a DNS name in lower case")
        return names

    @model_validator(mode="after")
    def _has_a_credential(self) -> Self:
        if not (self.token_sha256 or self.spiffe or self.dns or self.claims):
            raise ValueError("none of token_sha256, spiffe, dns and claims says how the caller is known")
        return self


class AnonymousSettings(Granted):
    """What may be seen by whoever presents no credential."""


class JwtSettings(Table):
    """Which JSON Web Tokens are believed."""

    issuer: Annotated[str, Field(min_length=1)]
    """The claim `iss`, to the letter."""
    audience: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed), AfterValidator(_some)
    ]
    """Of these one must be in the claim `aud`: tokens made for other services are refused."""
    jwks_url: str | None = None
    """Where the issuer publishes its public keys: https, or http on this machine."""
    jwks_file: FilePath | None = None
    """A file with them, in place of `jwks_url`; it is read again when it changes."""
    algorithms: Annotated[tuple[Algorithm, ...], AfterValidator(_some)] = ("RS256", "ES256")
    """Signatures that are believed, whatever a token says of itself."""
    name_claim: ClaimName = "sub"
    """The claim that names the caller, beside the name of its entry: in the log, and where its limits are
    counted. Every token must have it."""
    leeway: Annotated[float, Field(ge=0, le=300)] = 30.0
    """Seconds that clocks may differ. More: tokens live so much longer."""
    refresh: Seconds = 300.0
    """Seconds after which the keys are fetched again, while calls go on with those known. Less: a key that
    was withdrawn is refused sooner."""
    retry: Seconds = 10.0
    """Seconds at least between two fetches for a key that is not known, or after one that failed. Less: a new
    key works sooner, and made-up tokens cause more fetches."""
    timeout: Seconds = 5.0
    """Seconds that a fetch may take. Calls whose key is known do not wait for it."""

    @property
    def source(self) -> tuple[object, ...]:
        """All that shapes how the keys are fetched."""
        return (self.jwks_url, self.jwks_file, self.refresh, self.retry, self.timeout)

    @field_validator("jwks_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.absolute() if path else None

    @field_validator("jwks_url")
    @classmethod
    def _cannot_be_changed_on_its_way(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        if not host or parts.username is not None or not url.isprintable() or " " in url:
            raise ValueError("is not a URL of a host, without a user")
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
            raise ValueError("must be https, or http on this machine: keys could be exchanged on their way")
        return url

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("either jwks_url or jwks_file")
        return self


def check_callers(callers: Iterable[CallerSettings], jwt: JwtSettings | None) -> None:
    """What no entry can see by itself: who stands twice.

    Raises:
        ValueError: Two entries have the same name or credential, or claims are of no use.
    """
    seen: dict[tuple[str, object], str] = {}
    for caller in callers:
        keys: list[tuple[str, object]] = [("name", caller.name)]
        keys += [("token_sha256", each) for each in caller.token_sha256]
        keys += [("spiffe", each) for each in caller.spiffe]
        keys += [("dns", each) for each in caller.dns]
        if caller.claims:
            keys.append(
                ("claims", frozenset((name, frozenset(each)) for name, each in caller.claims.items()))
            )
            if jwt is None:
                raise ValueError(
                    f"{caller.name}: claims: there is no [jwt] that says which tokens are believed"
                )
        for key in keys:
            if key in seen:
                raise ValueError(f"{caller.name}: {key[0]}: stands twice, also at {seen[key]}")
            seen[key] = caller.name


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
