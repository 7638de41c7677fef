"""Waits for what calls ask, each for a while, and for so many at once.

gRPC itself would read a whole message before anybody can say whether the call may come in. So the gateway
takes every call as if its caller were to stream, and reads the one message when it is known who calls. Before
that, gRPC holds no more of it than the window that `listening` gives each stream.
"""

import asyncio
from typing import Any, Final

import grpc

from imagetasks_server.errors import DeadlineExceeded, Error, Exhausted, InvalidRequest

# At once. Whoever sends what it has to say waits for milliseconds: of 10,000 who came together, 300 at most.
MOST: Final = 500


class Arrivals:
    """Takes in one message of each call.

    Args:
        seconds: For which one is waited for.
        most: How many are waited for at once; above, whoever has been waited for longest has to come again.
    """

    def __init__(self, seconds: float, most: int = MOST) -> None:
        self._seconds = seconds
        self._most = most
        # When each is given up, soonest first: a timer for each call would cost more than all the rest here.
        self._awaited: dict[asyncio.Task[Any], float] = {}
        self._given_up: dict[asyncio.Task[Any], Error] = {}
        self._timer: asyncio.TimerHandle | None = None
        # Kept: before Python 3.12 it is a call to the system to find it out.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def message(self, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        """What a call asks, as it was sent.

        Raises:
            Error: It did not come, or not in time.
        """
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        if len(self._awaited) >= self._most:
            self._give_up(
                next(iter(self._awaited)),
                Exhausted("OVERLOADED", f"{self._most} others wait to be read, too", retry_after=1.0),
            )
        self._awaited[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._ring)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            error = self._given_up.pop(task, None)
            # Whoever else cancels means what it says.
            if error is None or task.uncancel():
                raise
            raise error from None
        finally:
            self._awaited.pop(task, None)
        if message is grpc.aio.EOF:
            raise InvalidRequest("request", "is missing")
        return message  # type: ignore[no-any-return]  # as it was sent: nothing makes anything else of it

    def _give_up(self, task: asyncio.Task[Any], error: Error) -> None:
        del self._awaited[task]
        self._given_up[task] = error
        task.cancel()

    def _ring(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        for task, until in tuple(self._awaited.items()):
            if until > now:
                self._timer = self._loop.call_at(until, self._ring)
                break
            text = f"the request was not there within {self._seconds:g} seconds"
            self._give_up(task, DeadlineExceeded("DEADLINE", text))
