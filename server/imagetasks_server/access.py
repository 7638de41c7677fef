"""One call's permission while the call lasts: decided at its beginning, and anew when something changes."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Unauthenticated
from imagetasks_server.permission import EVERYTHING, Permission

T = TypeVar("T")


class Access:
    """What a call may see now.

    Args:
        permission: What it may see.
        caller: Whom the log names; empty: nobody was asked.
        expires: Unix seconds at which its credential ends.
        task: The call's, in which all its steps run; None: nothing is cut short.

    Attributes:
        ended: Why it may see nothing any more.
        shown: What the call brought along, where nobody has looked at it: its metadata, and what gRPC says of
            the connection.
    """

    def __init__(
        self,
        permission: Permission = EVERYTHING,
        caller: str = "",
        expires: float = math.inf,
        task: asyncio.Task[Any] | None = None,
    ) -> None:
        self.permission = permission
        self.caller = caller
        self.expires = expires
        self.ended: Error | None = None
        self.shown: tuple[Any, Any] = ((), {})
        self._listeners: set[Callable[[], None]] = set()
        self._task = task
        self._clock: Clock | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_guarded = False
        self._is_cut = False

    def decide(self, permission: Permission) -> None:
        """From now on this is what it may see; who listens is told if that is news."""
        if permission != self.permission:
            self.permission = permission
            self._tell()

    def end(self, error: Error) -> None:
        """From now on it may see nothing."""
        if self.ended is not None:
            return
        self.ended = error
        if self._is_guarded and self._task is not None:
            self._is_cut = self._task.cancel()
        self._tell()

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call this whenever something changes, as long as the context lasts."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def end_when_it_expires(self, clock: Clock) -> None:
        """End it when its credential ends, as long as the call lasts."""
        self._clock = clock
        self._set_timer()

    def expire(self, at: float) -> None:
        """Its credential, at which nobody had looked before, ends then: in Unix seconds."""
        self.expires = at
        self._set_timer()
        self._tell()

    def left(self) -> None:
        """The call is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._clock is None or self.expires == math.inf:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.expires - self._clock(), lambda: self.end(expired()))

    def check(self) -> None:
        """Raises `Error` once the access has ended."""
        if self.ended is not None:
            raise self.ended.again()

    async def guard(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do one step of the call, which is cut short when the access ends. One at a time.

        Raises:
            Error: The access has ended, or ends meanwhile.
        """
        self.check()
        # Not asyncio.timeout: a step is to cost next to nothing.
        self._is_guarded = True
        try:
            return await step()
        except asyncio.CancelledError:
            # Whoever else cancels means what it says.
            if self.ended is None or not self._is_cut or self._task is None or self._task.uncancel():
                raise
            raise self.ended.again() from None
        finally:
            self._is_guarded = False

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def expired() -> Error:
    """The credential was good once."""
    return Unauthenticated("CREDENTIAL_EXPIRED", "the credential has expired")
