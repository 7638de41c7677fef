"""A wait as a state machine: ask, and ask again for as long as the caller has patience. No I/O, no clock."""

import math
from typing import Final

from imagetasks.backoff import Backoff, is_passing
from imagetasks.errors import Error
from imagetasks.v1 import store_image_tasks_pb2 as pb

Response = pb.WaitStoreImageTasksResponse

# Seconds of one call at most: what stands between may cut a longer one.
SLICE_SECONDS: Final = 300.0
# Seconds that the gateway has to answer in, after the time it was told.
GRACE_SECONDS: Final = 10.0
# Seconds after which the gateway has waited: to ask again at once is no rush.
_LONG_SECONDS: Final = 1.0


class Wait:
    """What a wait does next.

    Args:
        selector: Which tasks.
        wait_for_appearance: That nothing matches is no answer yet.
        seconds: The caller's patience; None: no limit.
        now: Seconds, of a clock that only goes forward.
        backoff: The pauses between attempts.
    """

    def __init__(
        self,
        selector: pb.TaskSelector,
        *,
        wait_for_appearance: bool,
        seconds: float | None,
        now: float,
        backoff: Backoff | None = None,
    ) -> None:
        self._selector = selector
        self._wait_for_appearance = wait_for_appearance
        self._until = math.inf if seconds is None else now + seconds
        self._backoff = backoff or Backoff()
        self._asked = now

    def request(self, now: float) -> tuple[pb.WaitStoreImageTasksRequest, float]:
        """What the next call asks, and its deadline in seconds."""
        self._asked = now
        seconds = max(0.0, min(SLICE_SECONDS, self._until - now))
        request = pb.WaitStoreImageTasksRequest(
            selector=self._selector, wait_for_appearance=self._wait_for_appearance
        )
        request.timeout.FromNanoseconds(round(seconds * 1e9))
        return request, seconds + GRACE_SECONDS

    def answered(self, response: Response, now: float) -> float | None:
        """Takes an answer; returns the pause before asking again, or None if it is the answer."""
        if response.reason not in {Response.REASON_TIMEOUT, Response.REASON_DRAINING} or now >= self._until:
            return None
        if response.reason == Response.REASON_TIMEOUT and now - self._asked >= _LONG_SECONDS:
            self._backoff.reset()
            return 0.0
        pause = self._backoff.pause()
        return None if now + pause >= self._until else pause

    def failed(self, error: Error, now: float) -> float:
        """Takes a failure; returns the pause before asking again.

        Raises:
            Error: It is not one that passes, or the time is over.
        """
        pause = self._backoff.pause(error)
        if not is_passing(error) or now + pause >= self._until:
            raise error
        return pause
