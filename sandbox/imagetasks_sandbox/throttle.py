"""EC2's throttle: a token bucket per account and Region. Pure but for its clock."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """The size of a bucket.

    Attributes:
        capacity: Tokens of a full bucket.
        refill: Tokens per second.
    """

    capacity: float = 50
    refill: float = 0.5


class Throttle:
    """Token buckets by key. Each starts full. To be called under a lock.

    Args:
        rate: Of every bucket.
        clock: Seconds, monotonic.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, account_id: str, region: str) -> bool:
        """Take one token; False when there is none."""
        now = self._clock()
        level, since = self._levels.get((account_id, region), (self._rate.capacity, now))
        level = min(self._rate.capacity, level + (now - since) * self._rate.refill)
        taken = level >= 1
        self._levels[account_id, region] = (level - 1 if taken else level, now)
        return taken
