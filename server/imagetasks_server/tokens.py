"""The tokens that continue a listing or a watch. Pure. Nothing of them is kept on the server."""

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from imagetasks_server.errors import InvalidRequest
from imagetasks_server.selection import Order
from imagetasks_server.targets import Target

MAX_CHARS: Final = 64 * 1024
_CHECKSUM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where a listing over many targets goes on; any replica continues it.

    Attributes:
        question: Fingerprint of the request as sent.
        after: The last listed task's place.
        floor: Unix seconds; states older than this may not answer further pages.
        targets: Account names to the Regions that have answered every page so far.
    """

    question: str
    after: Order
    floor: float
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def encode(self) -> str:
        """The token as sent."""
        # Most accounts have the same Regions: say each list once.
        by_regions: dict[tuple[str, ...], list[str]] = {}
        for account, regions in self.targets.items():
            by_regions.setdefault(tuple(sorted(regions)), []).append(account)
        groups = [[accounts, list(regions)] for regions, accounts in by_regions.items()]
        return _pack([self.question, list(self.after), self.floor, groups])

    @classmethod
    def decode(cls, text: str, question: str) -> Self:
        """Read a token back.

        Raises:
            InvalidRequest: It is damaged, or belongs to another question.
        """
        try:
            asked, (missing, start, task_id), floor, groups = _unpack(text)
            targets = {
                _text(a): [_text(r) for r in regions] for accounts, regions in groups for a in accounts
            }
            token = cls(_text(asked), (_whole(missing), _whole(start), _text(task_id)), _time(floor), targets)
        except (ValueError, TypeError) as error:
            raise _damaged("next_token", "PAGE_TOKEN_INVALID") from error
        if token.question != question:
            raise InvalidRequest(
                "next_token",
                "belongs to another question: only max_results, max_age and forbid_stale may change",
                reason="PAGE_TOKEN_INVALID",
            )
        return token


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """Where a watch goes on.

    Attributes:
        question: Fingerprint of the selector.
        epoch: The gateway process whose revisions are counted.
        revision: Everything up to it was delivered.
        targets: Digest of the targets followed.
        uncovered: Those of them, as (account, Region), whose snapshot was not delivered in full.
        as_of: Unix seconds. What a read shows that began later is no older than what was delivered, whoever
            reads.
    """

    question: str
    epoch: str
    revision: int
    targets: str
    uncovered: tuple[tuple[str, str], ...] = ()
    as_of: float = 0.0

    def encode(self) -> str:
        """The token as sent."""
        as_of = round(self.as_of, 3)
        return _pack([self.question, self.epoch, self.revision, self.targets, self.uncovered, as_of])

    @classmethod
    def decode(cls, text: str, question: str) -> Self:
        """Read a token back.

        Raises:
            InvalidRequest: It is damaged, or belongs to another selector.
        """
        try:
            asked, epoch, revision, targets, uncovered, as_of = _unpack(text)
            pairs = tuple((_text(account), _text(region)) for account, region in uncovered)
            token = cls(_text(asked), _text(epoch), _whole(revision), _text(targets), pairs, _time(as_of))
        except (ValueError, TypeError) as error:
            raise _damaged("resume_token", "RESUME_TOKEN_INVALID") from error
        if token.question != question:
            raise InvalidRequest(
                "resume_token", "belongs to a watch with another selector", reason="RESUME_TOKEN_INVALID"
            )
        return token


def digest_of(targets: Iterable[Target]) -> str:
    """A short digest of a set of targets."""
    names = "\n".join(sorted(f"{each.account}/{each.region}/{each.account_id}" for each in targets))
    return hashlib.blake2b(names.encode(), digest_size=6).hexdigest()


def _pack(body: list[Any]) -> str:
    """URL-safe text with a checksum, compressed where that makes it shorter."""
    plain = json.dumps(body, separators=(",", ":")).encode()
    packed = min(b"p" + plain, b"z" + zlib.compress(plain, 6), key=len) if len(plain) > 256 else b"p" + plain  # noqa: PLR2004
    return base64.urlsafe_b64encode(_checksum(packed) + packed).decode().rstrip("=")


def _unpack(text: str) -> Any:
    if len(text) > MAX_CHARS:
        raise ValueError
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        checksum, packed = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
        if _checksum(packed) != checksum:
            raise ValueError
        if packed[:1] != b"z":
            return json.loads(packed[1:])
        inflate = zlib.decompressobj()
        body = inflate.decompress(packed[1:], 16 * MAX_CHARS)
        if inflate.unconsumed_tail or not inflate.eof:
            raise ValueError
        return json.loads(body)
    except (zlib.error, binascii.Error, RecursionError) as error:
        raise ValueError from error


def _checksum(packed: bytes) -> bytes:
    # Against damage, not against forgery: each call is authorised anew, whatever its token says.
    return hashlib.blake2b(packed, digest_size=_CHECKSUM_BYTES, person=b"imagetasks").digest()


def _damaged(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(name, "is damaged or not of this gateway", reason=reason)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _time(value: object) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise TypeError
    return value
