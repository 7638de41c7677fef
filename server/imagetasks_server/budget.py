"""The token bucket of one target: what the gateway allows itself to ask of EC2.

EC2 gives this operation a bucket of its own per account and Region: capacity 50, refilled at 0.5 a
second (AWS documents both as adjustable quotas, so both are configuration). A call costs one token,
whatever comes of it. The gateway uses a part of the bucket, so that people at a shell keep the rest.

Pure but for its clock: it never waits, it says how long to wait.
"""

from dataclasses import dataclass

from imagetasks_server.clock import Clock


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


class Budget:
    """Tokens of one target, refilled by the clock."""

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        # Below one token nothing could ever be paid.
        self.capacity = max(1.0, allowance.capacity * allowance.usable)
        self.refill = allowance.refill * allowance.usable
        self._clock = clock
        self._level = min(self.capacity, max(0.0, allowance.initial))
        self._at = clock()

    def available(self) -> float:
        """Tokens that can be spent now."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.refill)
        self._at = now
        return self._level

    def wait(self) -> float:
        """Seconds until one call can be paid, if nobody else pays before. Zero: now."""
        missing = 1.0 - self.available()
        return max(0.0, missing / self.refill)

    def pay(self) -> bool:
        """Pay for one call, if it can be paid now."""
        # The tolerance forgives what floating point loses while the tokens trickle in.
        if self.available() < 1.0 - 1e-9:
            return False
        self._level = max(0.0, self._level - 1.0)
        return True
