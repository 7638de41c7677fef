"""Store tasks of one account in one Region: what a task is, how it progresses, in what order EC2 lists it.

Pure: no clock, no I/O. Every time comes in as an argument and is an aware UTC datetime.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

VISIBLE_FOR = timedelta(days=31)
"""EC2 lists a task for so long after its start."""


class State(StrEnum):
    """EC2's words for the state of a task."""

    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"


@dataclass(frozen=True)
class Trouble:
    """How a task is going to fail: at this share (0 to 1) of its time, for this reason."""

    share: float
    reason: str


@dataclass(slots=True, kw_only=True)
class Task:
    """The storing of one AMI as one object. It stays in progress until it is told to complete or to fail.

    Attributes:
        ami_id: The AMI.
        bucket: The bucket's name, without a prefix.
        key: The object's key, with the prefix.
        size_gib: Size of the AMI's snapshots, GiB.
        started: When; whole milliseconds, as EC2 shows it.
        lasts: How long the storing takes.
        trouble: Set for a task that is going to fail by itself.
    """

    ami_id: str
    bucket: str
    key: str
    size_gib: int
    started: datetime
    lasts: timedelta
    trouble: Trouble | None = None
    state: State = State.IN_PROGRESS
    failure_reason: str | None = None
    _final_percentage: int = 0

    @property
    def due(self) -> datetime:
        """When the task is to be ended."""
        return self.started + self.lasts * (self.trouble.share if self.trouble else 1)

    def percentage(self, now: datetime) -> int:
        """0 to 100; 100 only when completed, and where it stopped when failed."""
        if self.state is not State.IN_PROGRESS:
            return self._final_percentage
        return max(0, min(99, int(100 * ((now - self.started) / self.lasts))))

    def complete(self) -> None:
        """The object is in the bucket."""
        self.state, self._final_percentage = State.COMPLETED, 100

    def fail(self, reason: str, now: datetime) -> None:
        """The object will not come."""
        self._final_percentage = self.percentage(min(now, self.due))
        self.state, self.failure_reason = State.FAILED, reason


Place = tuple[datetime, int]
"""Where a task stands in EC2's order: start time and a number that breaks ties, growing with time."""


class Book:
    """All store tasks of one account in one Region, newest first."""

    def __init__(self) -> None:
        self._tasks: list[tuple[datetime, int, Task]] = []  # oldest first: new ones go to the cheap end
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Task) -> None:
        """Enter a task, which may have started in the past."""
        self._numbers += 1
        bisect.insort(self._tasks, (task.started, self._numbers, task))

    def newest_first(self, now: datetime, behind: Place | None = None) -> Iterator[tuple[Place, Task]]:
        """The tasks that EC2 shows at ``now``, each with its place; only those behind a place, if given."""
        first = bisect.bisect_left(self._tasks, (now - VISIBLE_FOR,))
        end = len(self._tasks) if behind is None else bisect.bisect_left(self._tasks, behind)
        for started, number, task in reversed(self._tasks[first:end]):
            yield (started, number), task

    def in_progress(self) -> list[Task]:
        """The tasks that have not ended, in no particular order."""
        return [task for _, _, task in self._tasks if task.state is State.IN_PROGRESS]

    def forget(self, now: datetime, most: int) -> None:
        """Drop what EC2 no longer shows, and the oldest tasks above ``most`` that have ended."""
        del self._tasks[: bisect.bisect_left(self._tasks, (now - VISIBLE_FOR,))]
        while len(self._tasks) > most and self._tasks[0][2].state is not State.IN_PROGRESS:
            del self._tasks[0]
