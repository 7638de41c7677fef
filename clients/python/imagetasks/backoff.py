"""When a call that failed is made again, and how long after. Pure, but for the dice."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from imagetasks.errors import Error, code_of

# Passing whoever sends them. CANCELLED is among UnavailableError: the caller's own never becomes an error.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
}
# A proxy that cuts a connection says one of these; the gateway, with a reason, means a fault that stays.
_CUT = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


def is_passing(error: Error) -> bool:
    """Whether the same call may succeed a while later, with nothing changed by anybody."""
    if error.target_failures and not error.omitted_target_failures:
        # The call succeeds as soon as one of its targets does, and its own code may be that of none.
        return any(_passes(code_of(each.code), each.reason) for each in error.target_failures)
    return _passes(error.code, error.reason)


def _passes(code: grpc.StatusCode, reason: str) -> bool:
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a reason it is this side's own limit on a message, which the next one exceeds too.
        return bool(reason)
    return code in _PASSING or (code in _CUT and not reason)


@dataclass(slots=True)
class Backoff:
    """Pauses that double, each shortened at random by up to a half, so that those who failed together part.

    Attributes:
        first: Seconds of the first pause at most. Less: a gateway that restarts is found sooner.
        most: Seconds of any pause at most. More: a gateway that is long away is asked less.
        uniform: Gives a number between two.
    """

    first: float = 0.5
    most: float = 30.0
    uniform: Callable[[float, float], float] = random.uniform
    _failures: int = field(default=0, init=False)

    def pause(self, error: Error | None = None) -> float:
        """Seconds until the next attempt; not less than the error asks for."""
        longest = min(self.most, self.first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        asked = error.retry_after.total_seconds() if error and error.retry_after else 0.0
        # Everybody was told the same time: they part behind it.
        return asked + self.uniform(longest / 2, longest)

    def reset(self) -> None:
        """It has gone well: the next pause is the first again."""
        self._failures = 0
