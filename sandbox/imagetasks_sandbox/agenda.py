"""What is to happen when: actions with a due time, run by a request or by the agenda's thread."""

import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

LONGEST_NAP = timedelta(seconds=60)
"""The thread looks at the clock at least so often: the machine may have slept."""


class Agenda:
    """Actions by due time. They run one at a time, in order, while ``lock`` is held; they must not block.

    Args:
        now: The clock; aware UTC datetimes.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._entries: list[tuple[datetime, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False

    def at(self, due: datetime, action: Callable[[], None]) -> None:
        """Run ``action`` at ``due`` or soon after."""
        with self._changed:
            heapq.heappush(self._entries, (due, next(self._numbers), action))
            if self._entries[0][0] >= due:
                self._changed.notify_all()

    def run_due(self) -> None:
        """Run what is due by now, so that an answer given after this call is up to date."""
        with self.lock:
            while self._entries and self._entries[0][0] <= self.now():
                _, _, action = heapq.heappop(self._entries)
                action()

    def run(self) -> None:
        """Run everything when it is due, until ``stop``. A thread's target."""
        with self._changed:
            while not self._stopped:
                self.run_due()
                nap = LONGEST_NAP
                if self._entries:
                    nap = min(nap, self._entries[0][0] - self.now())
                self._changed.wait(max(nap, timedelta(0)).total_seconds())

    def stop(self) -> None:
        """Make ``run`` return."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
