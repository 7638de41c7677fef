"""What one caller may see, and how much of the gateway it may use. Pure.

A permission is a union of grants. Each grant is accounts times Regions times methods, all given by
patterns, so one more grant never takes anything away.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from imagetasks_server.limits import NO_QUOTA, Quota

# Answers of `allows` that a permission remembers; accounts of organizations come and go.
_REMEMBERED: Final = 10_000


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern fits all of a text; its "*" stand for any characters, the rest for itself."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    *middle, last = rest
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        # The leftmost place is always good enough.
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def matches_any(patterns: Iterable[str], text: str) -> bool:
    """Whether one of the patterns fits."""
    return any(matches(pattern, text) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Grant:
    """Accounts times Regions, by methods; each a list of patterns."""

    accounts: tuple[str, ...] = ("*",)
    regions: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Permission:
    """What one caller may see by one method.

    Attributes:
        caller: The caller's name in the configuration; empty where anybody may ask everything.
        grants: What it may see; each by itself.
        quota: How much of the gateway it may use.
    """

    caller: str = ""
    grants: tuple[Grant, ...] = (Grant(),)
    quota: Quota = NO_QUOTA
    _known: dict[tuple[str, str], bool] = field(default_factory=dict, init=False, compare=False, repr=False)
    _seen: dict[str, bool] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is out of sight."""
        return Grant() in self.grants

    def sees_account(self, account: str) -> bool:
        """Whether anything of an account by this name may be seen, if there is one."""
        known = self._seen.get(account)
        if known is None:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            known = self._seen[account] = any(matches_any(grant.accounts, account) for grant in self.grants)
        return known

    def allows(self, account: str, region: str) -> bool:
        """Whether this target may be seen."""
        key = (account, region)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = any(
                matches_any(grant.accounts, account) and matches_any(grant.regions, region)
                for grant in self.grants
            )
        return known


EVERYTHING: Final = Permission()
