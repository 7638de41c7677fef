"""How much is let in: of one caller, and in all. Pure but for the clock and the jitter that it is given.

A call is let in or refused at once, before anything is done for it: nobody queues here. A refusal says
which limit it was and when to come back. What a caller's limits are is decided elsewhere; what is kept
of a caller is forgotten when it could no longer refuse anything.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from imagetasks_server.clock import Clock
from imagetasks_server.errors import Exhausted

# Seconds after which a place may be free again: a guess, spread so that not all come back at once.
CALL_RETRY: Final = 1.0
STREAM_RETRY: Final = 10.0

# Calls of which it is not known yet who calls: all wait for the same keys. Each takes 20 KiB or so.
MOST_UNDECIDED: Final = 1000

# Callers looked at, when a new one comes, for whether they can be forgotten: more than come.
_LOOKED_AT: Final = 2


@dataclass(frozen=True, slots=True)
class Quota:
    """What one caller may; None is no limit of its own.

    Attributes:
        calls_per_second: New calls in the long run, streams included.
        burst: New calls at once after a pause, 1 at least. Without it: one second's worth.
        concurrent_calls: Unary calls under way.
        open_streams: Streams and waits under way.
    """

    calls_per_second: float | None = None
    burst: int | None = None
    concurrent_calls: int | None = None
    open_streams: int | None = None

    def or_else(self, default: "Quota") -> "Quota":
        """This quota, and the default's numbers where it has none; a rate and its burst belong together."""
        rate = self if self.calls_per_second is not None else default
        return Quota(
            rate.calls_per_second,
            rate.burst,
            default.concurrent_calls if self.concurrent_calls is None else self.concurrent_calls,
            default.open_streams if self.open_streams is None else self.open_streams,
        )


NO_QUOTA: Final = Quota()


class Limits:
    """Lets calls in.

    Args:
        clock: Seconds that never step back.
        jitter: A number from 0 to 1, another one each time.
        max_concurrent_calls: Unary calls under way, of all callers together.
        max_open_streams: Streams and waits under way, of all callers together.
    """

    def __init__(
        self, clock: Clock, jitter: Callable[[], float], *, max_concurrent_calls: int, max_open_streams: int
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._most = {False: max_concurrent_calls, True: max_open_streams}
        self._under_way = {False: _Places(), True: _Places()}
        self._undecided = 0
        self._callers: dict[str, _Caller] = {}

    @property
    def concurrent_calls(self) -> int:
        """Unary calls under way."""
        return self._under_way[False].taken

    @property
    def open_streams(self) -> int:
        """Streams and waits under way."""
        return self._under_way[True].taken

    @property
    def callers(self) -> int:
        """Callers of whom something is kept."""
        return len(self._callers)

    @contextlib.contextmanager
    def undecided(self) -> Iterator[None]:
        """A call of which it is not known yet who calls, as long as the context lasts.

        Raises:
            Exhausted: There are too many.
        """
        if self._undecided >= MOST_UNDECIDED:
            text = f"the gateway has {MOST_UNDECIDED} calls whose credential it cannot check yet, its limit"
            raise Exhausted("OVERLOADED", text, retry_after=self._after(CALL_RETRY))
        self._undecided += 1
        try:
            yield
        finally:
            self._undecided -= 1

    def admit(self, caller: str, quota: Quota, *, streaming: bool) -> "Place":
        """Let a call in.

        Args:
            caller: Whose limits.
            quota: What they are now; they may change from call to call.
            streaming: The call lasts and mostly rests: a stream, or a wait.

        Returns:
            The place that it holds until it leaves.

        Raises:
            Exhausted: It may not come in. That takes nothing from the caller's rate.
        """
        now = self._clock()
        known = self._callers.get(caller)
        if known is None:
            self._forget_some(now)
            known = _Caller()
        own = quota.open_streams if streaming else quota.concurrent_calls
        if own is not None and known.under_way[streaming].taken >= own:
            reason = "TOO_MANY_STREAMS" if streaming else "TOO_MANY_CALLS"
            raise self._refusal(reason, "this caller has", own, streaming)
        if self._under_way[streaming].taken >= self._most[streaming]:
            raise self._refusal("OVERLOADED", "the gateway has", self._most[streaming], streaming)
        if quota.calls_per_second is not None:
            known.pay(quota.calls_per_second, quota.burst, now)
        self._callers[caller] = known
        return Place(self._under_way[streaming], known.under_way[streaming])

    def _refusal(self, reason: str, who: str, limit: int, streaming: bool) -> Exhausted:  # noqa: FBT001
        kind = "streams and waits" if streaming else "calls"
        after = self._after(STREAM_RETRY if streaming else CALL_RETRY)
        return Exhausted(reason, f"{who} {limit} {kind} under way, its limit", retry_after=after)

    def _after(self, seconds: float) -> float:
        return seconds * (0.5 + self._jitter())

    def _forget_some(self, now: float) -> None:
        """Whoever has no call under way and a full bucket is as one never seen."""
        for _ in range(min(_LOOKED_AT, len(self._callers))):
            name = next(iter(self._callers))
            known = self._callers.pop(name)
            if known.matters(now):
                self._callers[name] = known  # at the end: next time others are looked at


class _Places:
    """How many are taken."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = 0


class Place:
    """One call's place, among its caller's and among all."""

    __slots__ = ("_all", "_own")

    def __init__(self, all_: _Places, own: _Places) -> None:
        self._all, self._own = all_, own
        all_.taken += 1
        own.taken += 1

    def leave(self, _: object = None) -> None:
        """Give it back, once."""
        self._all.taken -= 1
        self._own.taken -= 1


class _Caller:
    """What is kept of a caller: its calls under way, and its bucket as the moment when it is full again."""

    __slots__ = ("full_at", "under_way")

    def __init__(self) -> None:
        self.under_way = {False: _Places(), True: _Places()}
        self.full_at = 0.0

    def pay(self, rate: float, burst: int | None, now: float) -> None:
        """Take one from the bucket.

        Raises:
            Exhausted: It is empty; tells exactly when there will be one.
        """
        capacity = max(1.0, rate if burst is None else burst)
        # A debt at another rate than today's is no larger than today's bucket.
        self.full_at = max(min(self.full_at, now + capacity / rate), now)
        full_at = self.full_at + 1 / rate
        wait = full_at - now - capacity / rate
        # Below a microsecond nobody waits: it is what adding up fractions leaves.
        if wait > 1e-6:  # noqa: PLR2004
            raise Exhausted(
                "RATE_LIMITED",
                f"this caller may begin {rate:g} calls per second, {capacity:g} at once",
                retry_after=wait,
            )
        self.full_at = full_at

    def matters(self, now: float) -> bool:
        """Whether forgetting it would change anything."""
        return any(each.taken for each in self.under_way.values()) or self.full_at > now
