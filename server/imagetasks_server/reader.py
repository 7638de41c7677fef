"""The reads of one target: which runs, which waits, and who shares them.

A read belongs to nobody: it has a task, a time limit and a context of its own. Callers join one and
leave it. At most one read runs and at most one waits behind it, however many callers there are:

    join(not_before)     the running read, if it started late enough or has not started yet;
                         else the one that waits, which starts when the running one ends
    leave                the last to leave a read cancels it

Each page is paid from the target's budget before it is asked, and applied to the view when it
arrives. State changes are synchronous; I/O stands around them.
"""

import asyncio
import contextvars

import structlog

from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Internal, Unavailable
from imagetasks_server.telemetry import Event
from imagetasks_server.upstream import PageExpired, Query, Upstream
from imagetasks_server.view import Entry, Listing, View

log = structlog.get_logger()


class Ear:
    """One caller's ear on any number of reads: collects which have news, and wakes the caller."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._news: dict[Read, None] = {}

    def notify(self, read: "Read") -> None:
        """Tell that a read has a page more, or has ended."""
        self._news[read] = None
        self._event.set()

    async def news(self) -> list["Read"]:
        """Wait until some read has news, and take them."""
        await self._event.wait()
        self._event.clear()
        news, self._news = list(self._news), {}
        return news


class Read:
    """One listing of a target's tasks, shared by all who joined it.

    Attributes:
        started: Unix seconds at which EC2 was first asked; None while it waits.
        pages: The pages applied so far, as entries of the view.
        done: It has ended.
        error: Why it failed; None when it succeeded, or has not ended.
        ears: Who joined it.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.pages: list[list[Entry]] = []
        self.done = False
        self.error: Error | None = None
        self.ears: set[Ear] = set()

    def publish(self) -> None:
        """Wake everybody who joined."""
        for ear in self.ears:
            ear.notify(self)


class Reader:
    """Reads one target for all who ask."""

    def __init__(self, view: View, upstream: Upstream, clock: Clock) -> None:
        self.view = view
        self.upstream = upstream
        self.last_error: Error | None = None
        self._clock = clock
        self._running: Read | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: Read | None = None

    def is_fresh(self, not_before: float) -> bool:
        """Whether what is known was read at `not_before` or later."""
        return self.view.read_time is not None and self.view.read_time >= not_before

    def join(self, not_before: float, ear: Ear) -> Read:
        """Join a read that starts at `not_before` or later. It must be left again."""
        read = self._running
        # A running read without ears has been cancelled and is on its way out.
        if read is None or not read.ears or (read.started is not None and read.started < not_before):
            read = self._next = self._next or Read()
        read.ears.add(ear)
        self._advance()
        return read

    def leave(self, read: Read, ear: Ear) -> None:
        """Leave a read, ended or not. The last to leave cancels it."""
        read.ears.discard(ear)
        if read.ears:
            return
        if read is self._next:
            self._next = None
        elif read is self._running and self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End what runs; whoever still waits is told."""
        self._next = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _advance(self) -> None:
        if self._running is not None or self._next is None:
            return
        self._running, self._next = self._next, None
        # An empty context: nothing of the caller who happened to come first may cling to it.
        self._task = asyncio.create_task(self._list(self._running), context=contextvars.Context())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A callback, for a task cancelled before its first step never reaches a `finally`.
        read, self._running, self._task = self._running, None, None
        assert read is not None
        read.error = _error_of(task)
        if not task.cancelled():
            self.last_error = read.error
        read.done = True
        read.publish()
        self._advance()

    async def _list(self, read: Read) -> None:
        await self.upstream.pay()
        listing = self._begin(read)
        token: str | None = None
        restarted = False
        while True:
            try:
                page = await self.upstream.ask(Query(), token)
            except PageExpired:
                # EC2 forgot its own token: from the top, once. What was applied counts once.
                if restarted:
                    raise
                restarted, token = True, None
            else:
                read.pages.append(self.view.apply(listing, page.tasks))
                token = page.next_token
                if not token:
                    break
                read.publish()
            await self.upstream.pay()
        self.view.finish(listing)

    def _begin(self, read: Read) -> Listing:
        read.started = self._clock()
        return Listing(read.started)


def _error_of(task: asyncio.Task[None]) -> Error | None:
    if task.cancelled():
        return Unavailable("DRAINING", "the gateway stops")
    error = task.exception()
    if error is None or isinstance(error, Error):
        return error
    log.error(Event.READ_FAILED, exc_info=error)
    return Internal("INTERNAL", "the read failed inside the gateway")
