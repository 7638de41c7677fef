"""Sleepers by the thousand: one timer wakes all whose time is over in the same tick.

A timer for each idle watch would cost as much as the rest of what we do for its heartbeat, and would wake the
loop each time.
"""

import asyncio
from typing import NamedTuple, Protocol


class Sleeper(Protocol):
    """Who sleeps. Found by identity."""

    @property
    def until(self) -> float:
        """Seconds of the loop's time at which to wake."""
        ...

    def ring(self, at: float) -> None:
        """The tick's time has come; whoever sleeps longer by now joins a later one."""
        ...


class _Tick(NamedTuple):
    timer: asyncio.TimerHandle
    sleepers: set[Sleeper]


class Ticks:
    """Wakes sleepers, each at most one tick early.

    Args:
        seconds: How long a tick is. More: fewer timers; less: they wake closer to their time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # By the loop's time at which they ring.
        self._ticks: dict[float, _Tick] = {}
        # Kept: before Python 3.12 it is a call to the system to find it out.
        self._loop: asyncio.AbstractEventLoop | None = None

    def join(self, sleeper: Sleeper) -> float:
        """Ring at the sleeper's time, or up to a tick before it; returns when."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        at = sleeper.until // self.seconds * self.seconds
        if at <= loop.time():
            # What is left is less than a tick.
            at = sleeper.until
        tick = self._ticks.get(at)
        if tick is None:
            self._ticks[at] = _Tick(loop.call_at(at, self._ring, at), {sleeper})
        else:
            tick.sleepers.add(sleeper)
        return at

    def leave(self, sleeper: Sleeper, at: float) -> None:
        """Do not ring then."""
        tick = self._ticks.get(at)
        if tick is None:
            return
        tick.sleepers.discard(sleeper)
        if not tick.sleepers:
            tick.timer.cancel()
            del self._ticks[at]

    def _ring(self, at: float) -> None:
        for sleeper in self._ticks.pop(at).sleepers:
            sleeper.ring(at)
