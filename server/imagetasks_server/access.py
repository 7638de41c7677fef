"""One call's permission while the call lasts: decided at its beginning, and anew when something changes."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

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

    Attributes:
        ended: Why it may see nothing any more.
    """

    def __init__(
        self, permission: Permission = EVERYTHING, caller: str = "", expires: float = math.inf
    ) -> None:
        self.permission = permission
        self.caller = caller
        self.expires = expires
        self.ended: Error | None = None
        self._listeners: set[Callable[[], None]] = set()

    def decide(self, permission: Permission) -> None:
        """From now on this is what it may see; who listens is told if that is news."""
        if permission != self.permission:
            self.permission = permission
            self._tell()

    def end(self, error: Error) -> None:
        """From now on it may see nothing."""
        if self.ended is None:
            self.ended = error
            self._tell()

    def has_expired(self, clock: Clock) -> bool:
        """Whether its credential has ended."""
        return clock() >= self.expires

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call this whenever something changes, as long as the context lasts."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    async def guard(
        self, step: Callable[[], Awaitable[T]], clock: Clock, *, until_it_expires: bool = True
    ) -> T:
        """Do one step of the call, which is cut short when the access ends.

        Args:
            step: What is awaited.
            clock: Unix seconds.
            until_it_expires: Cut it short also when the credential expires.

        Raises:
            Error: The access has ended, or ends meanwhile.
        """
        if self.ended is not None:
            raise self.ended.again()
        seconds = None
        if until_it_expires and self.expires < math.inf:
            seconds = self.expires - clock()
            if seconds <= 0:
                raise expired()
        try:
            async with asyncio.timeout(seconds) as scope:

                def ended() -> None:
                    if self.ended is not None:
                        scope.reschedule(asyncio.get_running_loop().time())

                with self.listening(ended):
                    return await step()
        except TimeoutError:
            if not scope.expired():
                raise
            raise self.ended.again() if self.ended is not None else expired() from None

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def expired() -> Error:
    """The credential was good once."""
    return Unauthenticated("CREDENTIAL_EXPIRED", "the credential has expired")
