"""The token bucket of one target: what the gateway allows itself to ask of EC2.

EC2 gives this operation a bucket of its own per account and Region: capacity 50, refilled at 0.5 a
second (AWS documents both as adjustable quotas, so both are configuration). A call costs one token,
whatever comes of it. The gateway uses a part of the bucket, so that people at a shell keep the rest.

Reads are common property: everybody is served by them. What serves one caller alone is private, and
may spend at most a quarter.

A throttle seen all the same means that somebody else spends the rest: the bucket is taken as empty and
refills at half the rate for a while, then at twice that, until it is back at the whole.

Pure but for its clock: it never waits, it says how long to wait.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imagetasks_server.clock import Clock

PRIVATE_PART: Final = 0.25
SLOW_SECONDS: Final = 60.0
LEAST_FACTOR: Final = 1 / 8

# Forgives what floating point loses while tokens trickle in.
_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Allowance:
    """What of EC2's bucket may be used.

    Attributes:
        capacity: EC2's tokens at most.
        refill: EC2's tokens gained per second.
        usable: The part of both that this process may use, 0 to 1.
        initial: Tokens at the start. Not full: a crash loop must not spend a fresh bucket each time.
    """

    capacity: float = 50.0
    refill: float = 0.5
    usable: float = 0.8
    initial: float = 5.0


class _Level:
    """Tokens that trickle in."""

    def __init__(self, capacity: float, refill: float, initial: float) -> None:
        # Below one token nothing could ever be paid.
        self.capacity = max(1.0, capacity)
        self.refill = refill
        self.tokens = min(self.capacity, max(0.0, initial))

    def gain(self, effective_seconds: float) -> None:
        self.tokens = min(self.capacity, self.tokens + self.refill * effective_seconds)

    def missing_seconds(self) -> float:
        """Seconds at the full rate until there is one token."""
        missing = 1.0 - self.tokens
        return missing / self.refill if missing > _TOLERANCE else 0.0


class Budget:
    """Tokens of one target, refilled by the clock.

    Attributes:
        throttles: How often EC2 throttled although the budget had paid.
        waited: Seconds in all for which calls waited for it; counted by those who waited.
    """

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        capacity, refill = allowance.capacity * allowance.usable, allowance.refill * allowance.usable
        self.throttles = 0
        self.waited = 0.0
        self._clock = clock
        self._all = _Level(capacity, refill, allowance.initial)
        self._private = _Level(
            self._all.capacity * PRIVATE_PART, refill * PRIVATE_PART, allowance.initial * PRIVATE_PART
        )
        self._at = clock()
        # The refill's factor, and until when it is below 1.
        self._factor = 1.0
        self._slow_until = self._at

    @property
    def capacity(self) -> float:
        """Most tokens that can be saved up."""
        return self._all.capacity

    @property
    def refill(self) -> float:
        """Tokens gained per second, as things stand."""
        self._advance()
        return self._all.refill * self._factor

    def available(self) -> float:
        """Tokens that can be spent now."""
        self._advance()
        return self._all.tokens

    def wait(self, *, private: bool = False) -> float:
        """Seconds until one call can be paid, if nobody else pays before. Zero: now."""
        self._advance()
        missing = self._all.missing_seconds()
        if private:
            missing = max(missing, self._private.missing_seconds())
        waited, at = 0.0, self._at
        for until, factor in self._rates():
            if missing <= (until - at) * factor:
                break
            missing -= (until - at) * factor
            waited += until - at
            at = until
        return waited + missing / factor

    def pay(self, *, private: bool = False) -> bool:
        """Pay for one call, if it can be paid now."""
        self._advance()
        levels = (self._all, self._private) if private else (self._all,)
        if any(level.missing_seconds() > 0 for level in levels):
            return False
        for level in levels:
            level.tokens = max(0.0, level.tokens - 1.0)
        # What private calls have saved up is a part of what there is: else, with the rest gone, each
        # second call would be theirs until their savings are.
        self._private.tokens = min(self._private.tokens, max(1.0, PRIVATE_PART * self._all.tokens))
        return True

    def throttled(self) -> None:
        """EC2 has throttled: somebody else spends from the same bucket."""
        self._advance()
        self.throttles += 1
        self._all.tokens = self._private.tokens = 0.0
        self._factor = max(LEAST_FACTOR, self._factor / 2)
        self._slow_until = self._at + SLOW_SECONDS

    def _advance(self) -> None:
        now = self._clock()
        for until, factor in self._rates():
            end = min(now, until)
            if end > self._at:
                for level in (self._all, self._private):
                    level.gain((end - self._at) * factor)
                self._at = end
            if end < until:
                self._factor = factor
                self._slow_until = until if factor < 1.0 else end
                break

    def _rates(self) -> Iterator[tuple[float, float]]:
        """From now on: until when the refill has which factor."""
        factor, until = self._factor, self._slow_until
        while factor < 1.0:
            yield until, factor
            factor, until = min(1.0, factor * 2), until + SLOW_SECONDS
        yield math.inf, 1.0
