"""How a view is refreshed: in full, from the top down as far as must be, or bit by bit behind that.

The first read of a target is a full one; then head reads go as far down as `shallow` says. When a full
read is due again, a head read is followed by a sweep, on from where it stopped and down to the end:
callers are answered before that, and it pauses wherever somebody waits or the budget runs low, to go
on behind a later read. A target whose list contradicts what shallow reading takes for granted is read
in full for a while.

Each page is paid from the target's budget before it is asked, and applied when it arrives.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from imagetasks_server import shallow
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error
from imagetasks_server.tally import GATEWAY, Kind, Purpose, Tally
from imagetasks_server.upstream import ImagesNotFound, Page, PageExpired, Query, Upstream
from imagetasks_server.view import Entry, Listing, View

# A sweep leaves so many tokens to the next read.
SWEEP_LEAVES: Final = 2.0
# Seconds between full reads while an unfinished task is not listed.
MISSED_FULL_READ_EVERY: Final = 60.0

SWEEP: Final = Purpose(Kind.SWEEP, GATEWAY)


class Report(Protocol):
    """Who wants to know how a refresh goes."""

    started: float | None
    paying: bool
    tally: Tally

    def add(self, entries: list[Entry]) -> None:
        """A page has been applied."""
        ...

    def waiters(self) -> Iterable[Tally]:
        """The calls that wait for it now."""
        ...


@dataclass(slots=True)
class _Sweep:
    """A full read on its way down."""

    listing: Listing
    token: str | None


class Refresher:
    """Refreshes one target's view.

    Args:
        view: What is known of the target.
        upstream: EC2.
        clock: Unix seconds.
        full_read_every: Seconds between full reads.
        distrust_for: Seconds of full reads only, after a contradiction.
    """

    def __init__(
        self, view: View, upstream: Upstream, clock: Clock, *, full_read_every: float, distrust_for: float
    ) -> None:
        self._view = view
        self._upstream = upstream
        self._clock = clock
        self._full_read_every = full_read_every
        self._distrust_for = distrust_for
        self._sweep: _Sweep | None = None
        # AMIs that EC2 no longer knows, while their tasks are still listed.
        self._unaskable: set[str] = set()
        # The largest that EC2 has given with more behind it: now and then it gives a short one.
        self._largest_page = 0

    def depth(self) -> shallow.Depth:
        """How far down the next refresh goes, once the list has been read in full."""
        return shallow.depth(self._view, self._unaskable, self._largest_page or shallow.PAGE_SIZE)

    async def refresh(self, report: Report) -> None:
        """Read what must be read.

        Raises:
            Error: EC2 could not be asked. What was read before that is in the view.
        """
        if self._must_read_in_full():
            await self._read_in_full(report)
        else:
            await self._read_head(report)

    async def sweep(self, must_pause: Callable[[], bool]) -> None:
        """Go on with a full read that is due, if any, until it must pause or the budget runs low."""
        budget = self._upstream.budget
        while self._sweep is not None and not must_pause() and budget.available() >= 1.0 + SWEEP_LEAVES:
            try:
                await self._upstream.pay()
                page = await self._upstream.ask(Query(purpose=SWEEP), self._sweep.token)
            except PageExpired:
                self._sweep = _Sweep(Listing(self._clock()), None)
                return
            except Error:
                # Nobody waits for this; the next read will meet the fault and tell.
                return
            self._view.apply(self._sweep.listing, page.tasks, self._clock())
            self._sweep.token = page.next_token
            if page.next_token is None:
                self._view.finish(self._sweep.listing, self._clock())
                self._sweep = None

    def _must_read_in_full(self) -> bool:
        view = self._view
        if view.full_read_time is None:
            return True
        return view.contradicted_at is not None and self._clock() < view.contradicted_at + self._distrust_for

    async def _read_in_full(self, report: Report) -> None:
        self._sweep = None
        listing = await self._begin(report, full=True)
        async with contextlib.aclosing(self._pages(report, Kind.FULL)) as pages:
            async for page in pages:
                self._take(report, listing, page)
        self._view.finish(listing, self._clock())

    async def _read_head(self, report: Report) -> None:
        boundary = self.depth().boundary
        listing = await self._begin(report, full=False)
        token: str | None = None
        async with contextlib.aclosing(self._pages(report, Kind.HEAD)) as pages:
            async for page in pages:
                entries = self._take(report, listing, page)
                token = page.next_token
                if entries and shallow.is_past(entries[-1].order, boundary):
                    by_id, by_page = shallow.stragglers(self._view, listing.started, self._unaskable)
                    if all(shallow.is_past(entries[-1].order, entry.order) for entry in by_page):
                        await self._ask_by_id(report, listing, by_id)
                        break
        # At the end of the list a head read has become a full one.
        listing.full = token is None
        self._view.finish(listing, self._clock())
        if listing.full:
            self._sweep = None
        elif self._sweep is None and self._is_full_read_due(listing):
            self._sweep = _Sweep(Listing(listing.started), token)

    def _is_full_read_due(self, listing: Listing) -> bool:
        assert self._view.full_read_time is not None
        missed = any(entry.listed_at < listing.started for entry in self._view.unfinished())
        every = min(self._full_read_every, MISSED_FULL_READ_EVERY) if missed else self._full_read_every
        return listing.started >= self._view.full_read_time + every

    async def _ask_by_id(self, report: Report, listing: Listing, entries: list[Entry]) -> None:
        wanted = [entry.task.ami_id for entry in entries]
        purpose = Purpose(Kind.IDS, report.tally, report.waiters)
        while batch := wanted[: shallow.IDS_PER_CALL]:
            await self._pay(report)
            try:
                page = await self._upstream.ask(Query(tuple(batch), purpose=purpose))
            except ImagesNotFound as error:
                # Deregistered since: from now on its task is reached by pages alone.
                gone = set(error.image_ids).intersection(batch)
                if not gone:
                    raise
                self._unaskable |= gone
                wanted = [image_id for image_id in wanted if image_id not in gone]
            else:
                self._take(report, listing, page)
                wanted = wanted[len(batch) :]

    async def _begin(self, report: Report, *, full: bool) -> Listing:
        await self._pay(report)
        report.started = self._clock()
        return Listing(report.started, full=full)

    async def _pages(self, report: Report, kind: Kind) -> AsyncGenerator[Page]:
        """Pages from the top down; the first has been paid."""
        query = Query(purpose=Purpose(kind, report.tally, report.waiters))
        token: str | None = None
        restarted = False
        while True:
            try:
                page = await self._upstream.ask(query, token)
            except PageExpired:
                # EC2 forgot its own token: from the top, once. What was applied counts once.
                if restarted:
                    raise
                restarted, token = True, None
            else:
                yield page
                token = page.next_token
                if token is None:
                    return
                self._largest_page = max(self._largest_page, len(page.tasks))
            await self._pay(report)

    async def _pay(self, report: Report) -> None:
        report.paying = True
        await self._upstream.pay()
        report.paying = False

    def _take(self, report: Report, listing: Listing, page: Page) -> list[Entry]:
        entries = self._view.apply(listing, page.tasks, self._clock())
        report.add(entries)
        return entries
