"""How a task comes along, from the percentages that were seen. Pure.

EC2 tells percentages alone. They come in steps and with pauses, and are seen whenever somebody reads;
so a rate is the median of the slopes between the last few rises (Theil and Sen's estimator), which one
odd step does not move far.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import timestamp

# Rises that the rate is taken from: enough to be robust, few enough to notice a change of pace.
RISES: Final = 8
_COMPLETE: Final = 100


@dataclass(slots=True)
class Pace:
    """What has been seen of one task in progress.

    Attributes:
        rises: (unix seconds, percentage) at which the percentage was first seen so high.
        stalled: It has not risen for long.
    """

    rises: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RISES))
    stalled: bool = False

    def see(self, percentage: int, at: float) -> bool:
        """Take in a percentage; whether it is news."""
        if self.rises and percentage <= self.rises[-1][1]:
            return False
        self.rises.append((at, percentage))
        self.stalled = False
        return True

    def stall(self, at: float, after: float) -> bool:
        """Whether the task is found stalled now, for the first time since it rose."""
        if self.stalled or not self.rises or at - self.rises[-1][0] < after:
            return False
        self.stalled = True
        return True

    def rate(self) -> float | None:
        """Percent per second; None until the percentage has risen."""
        slopes = [
            (high - low) / (later - earlier)
            for (earlier, low), (later, high) in combinations(self.rises, 2)
            if later > earlier
        ]
        return statistics.median(slopes) if slopes else None

    def message(self) -> pb.TaskPace:
        """As in the contract."""
        last, percentage = self.rises[-1]
        pace = pb.TaskPace(last_progress_time=timestamp(last), stalled=self.stalled)
        rate = self.rate()
        if rate is not None:
            pace.percent_per_second = rate
            if not self.stalled:
                left = max(0, _COMPLETE - percentage)
                pace.estimated_completion_time.CopyFrom(timestamp(last + left / rate))
        return pace
