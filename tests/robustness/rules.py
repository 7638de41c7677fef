"""How the gateway of a random world is configured, and what follows from that."""

import functools
from dataclasses import dataclass
from typing import Any, Final

from imagetasks_server.config import Settings

HEARTBEAT: Final = 10.0
BUSY: Final = 5.0
READ_TIMEOUT: Final = 20.0


AMPLE: Final = {"capacity": 1e6, "refill": 1e6, "initial": 1e6}
# The first reads spend it, and a read in full waits.
TIGHT: Final = {"capacity": 12.0, "refill": 1.0, "initial": 1.0}
SETTINGS: Final[dict[str, Any]] = {
    "accounts": [{"name": "main"}],
    "poll_interval": BUSY,
    "idle_poll_interval": 15.0,
    "poll_linger": 10.0,
    "heartbeat_interval": HEARTBEAT,
    "read_timeout": READ_TIMEOUT,
    "page_timeout": READ_TIMEOUT / 2,
    "full_read_every": 20.0,
    "stalled_after": 60.0,
    "keep_unused_for": 60.0,
    "distrust_for": 60.0,
    "region_expiry": 15.0,
    "limits": {"max_stream_age": 150.0},
}


@dataclass(frozen=True)
class Rules:
    """What a gateway was configured with, and what follows from that.

    Attributes:
        heartbeat: Seconds.
        busy: Seconds between reads.
        linger: Seconds for which reading goes on.
        unpaid: Seconds for which a read may wait for its budget.
        lifetime: Seconds that a watch lasts at most; at least four fifths of that.
        fresh_within: A target that can be read is read at least so often.
        found_within: A Region that came or went is found out in so many seconds.
        capacity: Of a target's budget.
        refill: Of a target's budget, per second.
        initial: Of a target's budget, in each process.
    """

    heartbeat: float
    busy: float
    linger: float
    unpaid: float
    lifetime: float
    fresh_within: float
    found_within: float
    capacity: float
    refill: float
    initial: float


@functools.cache
def settings(*, tight: bool) -> Settings:
    """Made once: that takes longer than many a read."""
    return Settings(**SETTINGS | {"budget": TIGHT if tight else AMPLE})


def rules(settings: Settings) -> Rules:
    usable = 1 - settings.budget.reserve
    return Rules(
        heartbeat=settings.heartbeat_interval,
        busy=settings.poll_interval,
        linger=settings.poll_linger,
        unpaid=settings.read_timeout if settings.budget.refill < AMPLE["refill"] else 0.0,
        lifetime=settings.limits.max_stream_age,
        fresh_within=1.2 * settings.idle_poll_interval + settings.read_timeout,
        # The list expires, a heartbeat has it asked for again, the next one finds it.
        found_within=settings.region_expiry + 2.5 * settings.heartbeat_interval,
        capacity=settings.budget.capacity * usable,
        refill=settings.budget.refill * usable,
        initial=settings.budget.initial,
    )
