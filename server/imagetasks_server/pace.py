"""How a task comes along, from the percentages that were seen. Pure.

EC2 tells percentages alone. They come in steps of any size and rest for any time, and are seen only when
somebody reads: every few seconds, or after minutes of silence. So a task has marks: where it was seen to
stand, and when. What lies between two marks is a stretch with a speed of its own. The rate is that of all
stretches of usual speed together. One that took far longer was a pause and counts for nothing, as long as
pauses are at most half of the few newest stretches; when most are slow, slow is usual.
"""

import statistics
from collections import deque
from itertools import pairwise
from typing import Final

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import timestamp

# Six stretches: enough to outvote three pauses, few enough to follow another speed within four rises.
MARKS: Final = 7
# A stretch so many times slower than usual was a pause; so many times quicker, the end of one.
UNUSUAL: Final = 3.0
# A rise seen after a silence may be as old as that. If the next follows within this part of the silence, the
# time between the two says nothing.
BADLY_DATED: Final = 0.5
_COMPLETE: Final = 100


class Pace:
    """What has been seen of one task in progress.

    Args:
        percentage: As seen the first time. Nobody knows since when, so it is no mark.
        at: Unix seconds of that.
        started: Unix seconds at which the task stood at 0 %; None if EC2 does not say.

    Attributes:
        percentage: The highest seen.
        risen_at: Unix seconds at which it was first seen so high.
        stalled: It has not risen for long.
    """

    __slots__ = ("_looked_at", "_marks", "_silence", "percentage", "risen_at", "stalled")

    def __init__(self, percentage: int, at: float, started: float | None) -> None:
        self.percentage = max(0, percentage)
        self.risen_at = at
        self.stalled = False
        # Unix seconds, percentage.
        self._marks: deque[tuple[float, int]] = deque([] if started is None else [(started, 0)], MARKS)
        self._looked_at = at
        # For how long nobody had looked when the newest mark was set.
        self._silence = 0.0

    def see(self, percentage: int, at: float) -> bool:
        """Take in a percentage, seen not before any other; whether it is news."""
        silence, self._looked_at = at - self._looked_at, at
        if percentage <= self.percentage:
            return False
        if self._marks and at - self._marks[-1][0] <= self._silence * BADLY_DATED:
            self._marks.pop()
        self._marks.append((at, percentage))
        self.percentage, self.risen_at, self._silence = percentage, at, silence
        self.stalled = False
        return True

    def stall(self, at: float, after: float) -> bool:
        """Whether the task is found stalled now, for the first time since it rose."""
        if self.stalled or at - self.risen_at < after:
            return False
        self.stalled = True
        return True

    def rate(self) -> float | None:
        """Percent per second; None until the percentage has risen."""
        stretches = [(later - earlier, high - low) for (earlier, low), (later, high) in pairwise(self._marks)]
        if not stretches:
            return None
        # Of two the quicker: a pause is likelier than a burst.
        usual = statistics.median_low(seconds / percent for seconds, percent in stretches)
        counted = [
            (seconds, percent)
            for seconds, percent in stretches
            if usual / UNUSUAL <= seconds / percent <= usual * UNUSUAL
        ]
        return sum(percent for _, percent in counted) / sum(seconds for seconds, _ in counted)

    def message(self, at: float) -> pb.TaskPace:
        """As in the contract, at a moment not before anything that was seen."""
        pace = pb.TaskPace(last_progress_time=timestamp(self.risen_at), stalled=self.stalled)
        rate = self.rate()
        if rate is not None:
            pace.percent_per_second = rate
            if not self.stalled:
                # Had it done one percent more meanwhile, that would have been seen.
                done = self.percentage + min(1.0, (at - self.risen_at) * rate)
                left = max(0.0, _COMPLETE - done)
                pace.estimated_completion_time.CopyFrom(timestamp(at + left / rate))
        return pace
