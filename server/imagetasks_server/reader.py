"""The reads of one target: which runs, which waits, and who shares them.

A read belongs to nobody: it has a task, time limits and a context of its own. Callers join one and
leave it. At most one read runs and at most one waits behind it, however many callers there are:

    join(not_before)     the running read, if it started late enough or has not started yet;
                         else the one that waits, which starts when the running one ends
    leave                the last to leave a read cancels it

State changes are synchronous; I/O stands around them.
"""

import asyncio
import contextvars

import structlog

from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Internal, Unavailable
from imagetasks_server.refresh import Refresher
from imagetasks_server.tally import GATEWAY, Tally
from imagetasks_server.telemetry import Event
from imagetasks_server.upstream import Upstream
from imagetasks_server.view import Entry, View

log = structlog.get_logger()


class Ear:
    """One caller's ear on any number of reads: collects which have news, and wakes the caller.

    Args:
        tally: On which the reads count that are begun for it.
    """

    def __init__(self, tally: Tally = GATEWAY) -> None:
        self.tally = tally
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
    """One refresh of a target's view, shared by all who joined it.

    Args:
        tally: As the attribute.

    Attributes:
        tally: On which it counts: that of whose demand began it, whoever leaves or joins later.
        started: Unix seconds at which EC2 was first asked; None while it waits.
        paying: It waits for the budget.
        pages: The pages applied so far, as entries of the view.
        done: It has ended.
        error: Why it failed; None when it succeeded, or has not ended.
        ears: Who joined it.
    """

    def __init__(self, tally: Tally = GATEWAY) -> None:
        self.tally = tally
        self.started: float | None = None
        self.paying = True
        self.pages: list[list[Entry]] = []
        self.done = False
        self.error: Error | None = None
        self.ears: set[Ear] = set()

    def add(self, entries: list[Entry]) -> None:
        """A page has been applied."""
        self.pages.append(entries)
        self._publish()

    def end(self, error: Error | None = None) -> None:
        """It has ended."""
        self.done, self.error = True, error
        self._publish()

    def waiters(self) -> list[Tally]:
        """The tallies of those who wait for it now."""
        return [ear.tally for ear in self.ears]

    def _publish(self) -> None:
        for ear in self.ears:
            ear.notify(self)


class Reader:
    """Reads one target for all who ask.

    Args:
        view: What is known of the target.
        upstream: EC2.
        clock: Unix seconds.
        full_read_every: Seconds between full reads.
        distrust_for: Seconds of full reads only, after a contradiction.
        timeout: Seconds a read may take, waiting for its budget included.
    """

    def __init__(
        self,
        view: View,
        upstream: Upstream,
        clock: Clock,
        *,
        full_read_every: float,
        distrust_for: float,
        timeout: float,
    ) -> None:
        self.view = view
        self.upstream = upstream
        self.last_error: Error | None = None
        self._refresher = Refresher(
            view, upstream, clock, full_read_every=full_read_every, distrust_for=distrust_for
        )
        self._timeout = timeout
        self._running: Read | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: Read | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._running is None and self._next is None

    @property
    def calls(self) -> int:
        """What the next read costs if no task has started since; known once there was one."""
        return self._refresher.depth().calls

    def is_fresh(self, not_before: float) -> bool:
        """Whether what is known was read at `not_before` or later."""
        return self.view.read_time is not None and self.view.read_time >= not_before

    def join(self, not_before: float, ear: Ear) -> Read:
        """Join a read that starts at `not_before` or later. It must be left again."""
        read = self._running
        if read is None or not _can_be_joined(read, not_before):
            read = self._next = self._next or Read(ear.tally)
        read.ears.add(ear)
        self._advance()
        return read

    def leave(self, read: Read, ear: Ear) -> None:
        """Leave a read, ended or not. The last to leave cancels it."""
        read.ears.discard(ear)
        if read.ears or read.done:
            return
        if read is self._next:
            self._next = None
        elif read is self._running and self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End what runs; whoever still waits is told."""
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.end(_closing())
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _advance(self) -> None:
        if self._running is not None or self._next is None:
            return
        self._running, self._next = self._next, None
        # An empty context: nothing of the caller who happened to come first may cling to it.
        self._task = asyncio.create_task(self._run(self._running), context=contextvars.Context())
        self._task.add_done_callback(self._ended)

    async def _run(self, read: Read) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._refresher.refresh(read)
        except TimeoutError:
            raise Unavailable("AWS_TIMEOUT", f"The read took longer than {self._timeout:g} s") from None
        self.last_error = None
        self.view.publish()
        read.end()
        await self._refresher.sweep(lambda: self._next is not None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A callback, for a task cancelled before its first step never reaches a `finally`.
        read, self._running, self._task = self._running, None, None
        assert read is not None
        error = _error_of(task)
        if not read.done:
            if not task.cancelled():
                self.last_error = error
                self.view.publish()
            read.end(error)
        self._advance()


def _can_be_joined(read: Read, not_before: float) -> bool:
    # One without ears has been cancelled and is on its way out; one that is done only sweeps.
    if read.done or not read.ears:
        return False
    return read.started is None or read.started >= not_before


def _closing() -> Error:
    return Unavailable("DRAINING", "the gateway stops")


def _error_of(task: asyncio.Task[None]) -> Error | None:
    if task.cancelled():
        return _closing()
    error = task.exception()
    if error is None or isinstance(error, Error):
        return error
    log.error(Event.READ_FAILED, exc_info=error)
    return Internal("INTERNAL", "the read failed inside the gateway")
