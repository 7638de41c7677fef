"""Reads a target by itself while somebody follows it: once for all followers.

Often while something is in progress, seldom while nothing is, and never so often that it would spend
more than half of what the budget sustains. What others read in the meantime counts: a describe puts the
next read off as a read of its own would.
"""

import asyncio
import contextlib
import contextvars
import random
from dataclasses import dataclass
from typing import Final

import structlog

from imagetasks_server.clock import Clock
from imagetasks_server.reader import Ear, Reader
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

# Of the interval, so that targets followed since the same moment are not read in the same moment.
JITTER: Final = 0.1
# The part of what the budget sustains that reading by itself may spend.
BUDGET_PART: Final = 0.5


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a followed target is read, in seconds.

    Attributes:
        busy: While something is in progress.
        idle: While nothing is, and the most after failures in a row.
        linger: For how long after the last follower has left.
    """

    busy: float = 5.0
    idle: float = 30.0
    linger: float = 10.0


class Poller:
    """One target's reading by itself.

    Attributes:
        left_at: Unix seconds at which the last follower left; 0 before that.
    """

    def __init__(self, reader: Reader, clock: Clock, rhythm: Rhythm, jitter: random.Random) -> None:
        self.left_at = 0.0
        self._reader = reader
        self._clock = clock
        self._rhythm = rhythm
        self._jitter = jitter
        self._followers = 0
        self._wanted = 0.0
        self._tried_at: float | None = None
        self._failures = 0
        self._stretch = 1.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody follows and nothing lingers."""
        return self._task is None

    @property
    def interval(self) -> float | None:
        """Seconds between reads, as things stand; None while nobody follows."""
        return None if self._task is None else self._interval()

    def follow(self, not_before: float) -> None:
        """Count a follower who needs a read that started at `not_before` or later."""
        self._followers += 1
        self.want(not_before)
        # One that is done has stopped lingering just now; its callback comes a turn later.
        if self._task is None or self._task.done():
            self._reader.view.listeners.add(self._wake.set)
            self._task = asyncio.create_task(self._poll(), context=contextvars.Context())
            self._task.add_done_callback(self._ended)

    def want(self, not_before: float) -> None:
        """Ask for a read that starts at `not_before` or later, soon."""
        self._wanted = max(self._wanted, not_before)
        self._wake.set()

    def unfollow(self) -> None:
        """A follower leaves."""
        self._followers -= 1
        self.left_at = self._clock()
        self._wake.set()

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            self._task = None
            self._reader.view.listeners.discard(self._wake.set)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(Event.READ_FAILED, exc_info=error)

    async def _poll(self) -> None:
        while True:
            now = self._clock()
            until = self._due()
            if not self._followers:
                ends = self.left_at + self._rhythm.linger
                if now >= ends:
                    return
                until = min(until, ends)
            if now < until:
                await self._sleep(until - now)
            else:
                await self._read()

    async def _sleep(self, seconds: float) -> None:
        # What others read wakes it too: a task that they find is read often from then on.
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _read(self) -> None:
        self._tried_at = self._clock()
        ear = Ear()
        # Somebody else's that runs will do: another one right behind it would tell little.
        read = self._reader.join(self._wanted, ear)
        try:
            while not read.done:
                await ear.news()
        finally:
            self._reader.leave(read, ear)
        if read.started is not None:
            self._tried_at = min(self._tried_at, read.started)
        self._failures = 0 if read.error is None else self._failures + 1
        self._stretch = 1 + JITTER * self._jitter.random()

    def _due(self) -> float:
        """When the next read is to start."""
        read_time = self._reader.view.read_time
        if self._failures and read_time is not None and read_time > (self._tried_at or 0.0):
            # Somebody else's read has succeeded since.
            self._failures = 0
        if not self._failures and (read_time is None or read_time < self._wanted):
            return self._wanted
        last = max(read_time or 0.0, self._tried_at or 0.0)
        return last + self._interval()

    def _interval(self) -> float:
        view = self._reader.view
        seconds = self._rhythm.busy if view.in_progress or view.read_time is None else self._rhythm.idle
        if self._failures:
            seconds = min(max(seconds, self._rhythm.idle), self._rhythm.busy * 2**self._failures)
        if view.read_time is not None:
            sustained = self._reader.upstream.budget.refill * BUDGET_PART
            seconds = max(seconds, self._reader.calls / sustained)
        return seconds * self._stretch
