"""EC2's limit on calls: a token bucket for each account and Region, and a record of every call. Pure.

Off until limits are posted as JSON; posting forgets all calls so far:

    {"capacity": 50, "refill": 0.5, "speed": 30}

`speed` is how many of EC2's seconds pass in one of ours, so that minutes of its clock take seconds. A call
that is refused costs nothing.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Where limits are posted to, and calls are told.
LIMITS_PATH = "/canned/limits"
CALLS_PATH = "/canned/calls"


class Bucket:
    """A token bucket, full at first.

    Args:
        capacity: Tokens at most.
        refill: Tokens gained per second.
        now: Seconds, of whatever clock.
    """

    def __init__(self, capacity: float, refill: float, now: float) -> None:
        self.capacity = capacity
        self.refill = refill
        self.tokens = capacity
        self._at = now

    def take(self, now: float) -> bool:
        """Whether a call at this moment is allowed."""
        self.tokens = min(self.capacity, self.tokens + self.refill * (now - self._at))
        self._at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(frozen=True)
class Limits:
    """What every target allows.

    Attributes:
        capacity: Calls at once.
        refill: Calls per second of EC2's clock.
        speed: EC2's seconds in one of ours.
    """

    capacity: float
    refill: float
    speed: float = 1.0


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        at: Seconds of EC2's clock.
        key: The access key that signed it.
        throttled: It was refused for coming too soon.
    """

    at: float
    key: str
    throttled: bool


@dataclass
class Throttle:
    """All targets' buckets and calls."""

    limits: Limits | None = None
    calls: defaultdict[tuple[str, str], list[Call]] = field(default_factory=lambda: defaultdict(list))
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def post(self, given: Mapping[str, Any]) -> None:
        """Begin anew with these limits; an empty object takes them away.

        Raises:
            TypeError: It has a member that means nothing.
        """
        self.limits = Limits(**given) if given else None
        self.calls.clear()
        self._buckets.clear()

    def take(self, account: str, region: str, key: str, seconds: float) -> bool:
        """Note a call, and whether it is allowed.

        Args:
            account: Whom it is for.
            region: Where.
            key: The access key that signed it.
            seconds: Now, of our clock.
        """
        limits, target = self.limits, (account, region)
        now = seconds * (limits.speed if limits else 1.0)
        allowed = True
        if limits is not None:
            bucket = self._buckets.setdefault(target, Bucket(limits.capacity, limits.refill, now))
            allowed = bucket.take(now)
        self.calls[target].append(Call(now, key, not allowed))
        return allowed

    def told(self) -> dict[str, Any]:
        """All calls, as JSON."""
        return {
            "targets": [
                {
                    "account": account,
                    "region": region,
                    "calls": [[each.at, each.key, each.throttled] for each in calls],
                }
                for (account, region), calls in sorted(self.calls.items())
            ]
        }
