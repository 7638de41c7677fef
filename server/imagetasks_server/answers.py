"""One question over many views: waits for what must be read, merges, pages, and says how each target ended.

Kept: the bytes of answers that came from views alone. Their key is the question, the place in the
listing and the targets; they are good while no view behind them was read or changed since, which the
views' revisions and read times tell. Who asks is not in the key: that was decided before.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cachetools import LRUCache

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import Aborted, DeadlineExceeded, Error, all_failed
from imagetasks_server.reader import Ear, Read
from imagetasks_server.selection import Order, PageToken, Selection
from imagetasks_server.targets import Resolution, Target
from imagetasks_server.tracked import Registry, Tracked
from imagetasks_server.view import Entry, View

MAX_PAGE_TASKS: Final = 1000
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
STREAM_PAGE_TASKS: Final = 200

# An unfinished target gets its outcome this long before the caller's deadline, so that the rest arrives.
_MARGIN_SECONDS: Final = 0.5
_MARGIN_PART: Final = 0.1

Stamp: TypeAlias = tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the targets.

    Attributes:
        selection: Which tasks.
        not_before: Unix seconds; states read before then are too old.
        forbid_stale: Rather no state than one that is too old.
        deadline: Unix seconds at which the answer must be there.
    """

    selection: Selection
    not_before: float
    forbid_stale: bool
    deadline: float


@dataclass(frozen=True, slots=True)
class Place:
    """Which page of a listing.

    Attributes:
        fingerprint: Of the request as sent.
        page_size: Tasks at most; None: `MAX_PAGE_TASKS` or `MAX_PAGE_BYTES`.
        token: Where it goes on; None on the first page.
    """

    fingerprint: str
    page_size: int | None = None
    token: PageToken | None = None

    @property
    def after(self) -> Order | None:
        """The last listed task's place."""
        return self.token.after if self.token else None


@dataclass(slots=True, eq=False)
class _Part:
    """One target's part of an answer, as it comes about."""

    target: Target
    tracked: Tracked | None = None
    read: Read | None = None
    source: "pb.Source.ValueType" = pb.SOURCE_NONE
    read_time: float | None = None
    error: Error | None = None
    # Of a stream: pages of the read already sent, and the tasks in them.
    pages_sent: int = 0
    sent: set[str] = field(default_factory=set)

    @property
    def view(self) -> View:
        assert self.tracked is not None
        return self.tracked.view

    def settle(self, question: Question, error: Error | None = None) -> None:
        """Say how it ended: the read, the view's state, or the last good state beside an error."""
        if error is None and self.tracked is not None:
            self.source = pb.SOURCE_LIVE if self.read else pb.SOURCE_CACHED
            self.read_time = self.view.read_time
            return
        assert error is not None
        self.error = error.at(self.target.account, self.target.region)
        if self.pages_sent:
            # Live rows have been sent; older ones would contradict them.
            self.source, self.read_time = pb.SOURCE_LIVE, self.read.started if self.read else None
        elif self.tracked is not None and self.view.read_time is not None and not question.forbid_stale:
            self.source, self.read_time = pb.SOURCE_STALE, self.view.read_time

    def outcome(self) -> pb.TargetOutcome:
        outcome = pb.TargetOutcome(target=self.target.message(), source=self.source)
        if self.error is not None:
            outcome.status.CopyFrom(self.error.status())
        if self.read_time is not None:
            outcome.read_time.CopyFrom(timestamp(self.read_time))
        return outcome

    def named(self, task: pb.StoreImageTaskResult) -> pb.StoreImageTaskResult:
        """The task under the account's name as asked: a view may be shared by two names."""
        if task.account == self.target.account:
            return task
        copy = pb.StoreImageTaskResult()
        copy.CopyFrom(task)
        copy.account = self.target.account
        return copy


class _Reading:
    """The reads a caller has joined; closing leaves them, whatever has become of them."""

    def __init__(self) -> None:
        self._ear = Ear()
        self._parts: dict[Read, list[_Part]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def join(self, part: _Part, not_before: float) -> None:
        assert part.tracked is not None
        part.read = part.tracked.reader.join(not_before, self._ear)
        self._parts.setdefault(part.read, []).append(part)

    async def news(self, seconds: float) -> list[tuple[Read, list[_Part]]]:
        """Wait for reads that have a page more or have ended; none when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                return [(read, self._parts[read]) for read in await self._ear.news() if read in self._parts]
        except TimeoutError:
            return []

    def leave(self, read: Read) -> None:
        for part in self._parts.pop(read)[:1]:
            assert part.tracked is not None
            part.tracked.reader.leave(read, self._ear)

    def unfinished(self) -> list[_Part]:
        return [part for parts in self._parts.values() for part in parts]

    def close(self) -> None:
        for read in list(self._parts):
            self.leave(read)


class Answers:
    """Answers questions from the registry's views.

    Args:
        registry: The targets.
        clock: Unix seconds.
        cache_bytes: Memory for serialised answers; 0 keeps none.
    """

    def __init__(self, registry: Registry, clock: Clock, *, cache_bytes: int) -> None:
        self._registry = registry
        self._clock = clock
        self._kept: LRUCache[tuple[object, ...], tuple[Stamp, bytes]] = LRUCache(
            cache_bytes, getsizeof=lambda kept: len(kept[1])
        )

    async def describe(self, question: Question, place: Place, resolution: Resolution) -> bytes:
        """One page over all targets, as a serialised DescribeStoreImageTasksResponse.

        Raises:
            Error: Every target failed, or the only one did, or it does not know an image.
        """
        parts, out = self._parts(resolution, place.token)
        with contextlib.closing(self._join(parts, question)) as reading:
            from_views_alone = not reading and not out
            if from_views_alone:
                key = (place.fingerprint, place.page_size, place.after, resolution.targets)
                stamp = tuple((part.view.revision, part.view.read_time) for part in parts)
                kept = self._kept.get(key)
                if kept is not None and kept[0] == stamp:
                    return kept[1]
            while reading:
                news = await reading.news(self._left(question))
                for read, read_parts in news:
                    if read.done:
                        reading.leave(read)
                        for part in read_parts:
                            part.settle(question, read.error)
                if not news:
                    break
            for part in reading.unfinished():
                part.settle(question, _too_late())
        _fail_if_all_did([*parts, *out])
        if len(parts) == 1 and not out:
            await self._check_images(question, parts[0])
        answer = _page(question, place, parts, out).SerializeToString()
        if from_views_alone and len(answer) <= self._kept.maxsize:
            self._kept[key] = (stamp, answer)
        return answer

    async def stream(
        self, question: Question, resolution: Resolution
    ) -> AsyncGenerator[pb.StreamStoreImageTasksResponse]:
        """Pages as targets answer, an outcome for each target, and a summary."""
        summary = pb.StreamStoreImageTasksResponse.Summary()
        parts, failed = self._parts(resolution)
        with contextlib.closing(self._join(parts, question)) as reading:
            for part in parts:
                if part.read is None:
                    for message in _rest(question, part, summary):
                        yield message
            for part in failed:
                yield _ended(part, summary)
            while reading:
                news = await reading.news(self._left(question))
                for read, read_parts in news:
                    for part in read_parts:
                        for message in _new_pages(question, part, read, summary):
                            yield message
                    if read.done:
                        reading.leave(read)
                        for part in read_parts:
                            part.settle(question, read.error)
                            for message in _rest(question, part, summary):
                                yield message
                if not news:
                    break
            for part in reading.unfinished():
                part.settle(question, _too_late())
                for message in _rest(question, part, summary):
                    yield message
        yield pb.StreamStoreImageTasksResponse(summary=summary)

    async def permissions(self, question: Question, resolution: Resolution) -> bytes:
        """A dry run over all targets: OK where permitted.

        Raises:
            Error: One target was asked, and this is EC2's answer; or none could be asked.
        """
        parts, failed = self._parts(resolution)

        async def ask(part: _Part) -> None:
            assert part.tracked is not None
            try:
                async with asyncio.timeout(self._left(question)):
                    answer = await part.tracked.lookups.permission()
            except TimeoutError:
                answer = _too_late()
            except Error as error:
                answer = error
            part.error = answer.at(part.target.account, part.target.region)

        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(ask(part))
        if len(parts) + len(failed) == 1:
            raise _error_of((*parts, *failed)[0]).again()
        for part in parts:
            if _error_of(part).reason == "DRY_RUN_OPERATION":
                part.error, part.source = None, pb.SOURCE_LIVE
        _fail_if_all_did([*parts, *failed])
        outcomes = [part.outcome() for part in sorted([*parts, *failed], key=_by_target)]
        return pb.DescribeStoreImageTasksResponse(target_outcomes=outcomes).SerializeToString()

    def _parts(
        self, resolution: Resolution, token: PageToken | None = None
    ) -> tuple[list[_Part], list[_Part]]:
        """The parts to be answered, and those that are out from the start."""
        out = [_Part(target, error=error) for target, error in resolution.failed]
        parts = []
        for target in resolution.targets:
            if token is not None and target.region not in token.targets.get(target.account, ()):
                out.append(_Part(target, error=_left_out(target)))
            else:
                parts.append(_Part(target, self._registry.of(target)))
        return parts, out

    def _join(self, parts: Sequence[_Part], question: Question) -> _Reading:
        """Settle what is fresh enough, and join a read for the rest."""
        reading = _Reading()
        for part in parts:
            assert part.tracked is not None
            if part.tracked.reader.is_fresh(question.not_before):
                part.settle(question)
            else:
                reading.join(part, question.not_before)
        return reading

    def _left(self, question: Question) -> float:
        """Seconds until unfinished targets get their outcome."""
        left = question.deadline - self._clock()
        return max(0.0, left - min(_MARGIN_SECONDS, left * _MARGIN_PART))

    async def _check_images(self, question: Question, part: _Part) -> None:
        """Only one target can be asked whether an image exists: AMI ids are regional."""
        if not question.selection.newest_only:
            return
        known = {entry.task.ami_id for entry in part.view.selected(question.selection)}
        unknown = question.selection.image_ids - known
        if not unknown:
            return
        assert part.tracked is not None
        try:
            async with asyncio.timeout(self._left(question)):
                missing = await part.tracked.lookups.missing_images(unknown)
        except TimeoutError:
            missing = None
            raise _too_late().at(part.target.account, part.target.region) from None
        except Error as error:
            raise error.at(part.target.account, part.target.region) from None
        if missing is not None:
            raise missing.at(part.target.account, part.target.region)


def _page(
    question: Question, place: Place, parts: Sequence[_Part], out: Sequence[_Part]
) -> pb.DescribeStoreImageTasksResponse:
    response = pb.DescribeStoreImageTasksResponse(
        target_outcomes=[part.outcome() for part in sorted([*parts, *out], key=_by_target)]
    )
    answering = [part for part in parts if part.source != pb.SOURCE_NONE]
    rows = _merged(question.selection, answering, place.after)
    limit = place.page_size or MAX_PAGE_TASKS
    size = 0
    last: Order | None = None
    for entry, part in rows:
        size += entry.task.ByteSize()
        count = len(response.store_image_task_results)
        if count == limit or (count and place.page_size is None and size > MAX_PAGE_BYTES):
            assert last is not None
            response.next_token = _next_token(question, place, last, answering).encode()
            break
        response.store_image_task_results.append(part.named(entry.task))
        last = entry.order
    return response


def _merged(
    selection: Selection, parts: Sequence[_Part], after: Order | None
) -> Iterator[tuple[Entry, _Part]]:
    """The rows of all parts, newest first. Two names of one account show its tasks once."""
    by_view = {id(part.view): part for part in reversed(parts)}
    streams = [((entry, part) for entry in part.view.selected(selection, after)) for part in by_view.values()]
    return heapq.merge(*streams, key=lambda row: row[0].order)


def _next_token(question: Question, place: Place, last: Order, answering: Sequence[_Part]) -> PageToken:
    targets: dict[str, list[str]] = {}
    for part in answering:
        targets.setdefault(part.target.account, []).append(part.target.region)
    if place.token is not None:
        floor = place.token.floor
    else:
        # What the views are from, not what was asked for: the same views give the same bytes.
        times = [part.read_time for part in answering if part.source != pb.SOURCE_STALE and part.read_time]
        floor = min(times, default=question.not_before)
    return PageToken(place.fingerprint, last, floor, targets)


def _new_pages(
    question: Question, part: _Part, read: Read, summary: pb.StreamStoreImageTasksResponse.Summary
) -> Iterator[pb.StreamStoreImageTasksResponse]:
    while part.pages_sent < len(read.pages):
        entries = read.pages[part.pages_sent]
        part.pages_sent += 1
        yield from _pages(question, part, entries, summary)


def _rest(
    question: Question, part: _Part, summary: pb.StreamStoreImageTasksResponse.Summary
) -> Iterator[pb.StreamStoreImageTasksResponse]:
    """What the view has beyond the read's pages, and the outcome."""
    complete = part.source in {pb.SOURCE_CACHED, pb.SOURCE_STALE} or (
        part.source == pb.SOURCE_LIVE and part.error is None
    )
    if complete:
        yield from _pages(question, part, part.view.selected(question.selection), summary)
    yield _ended(part, summary)


def _pages(
    question: Question,
    part: _Part,
    entries: Iterable[Entry],
    summary: pb.StreamStoreImageTasksResponse.Summary,
) -> Iterator[pb.StreamStoreImageTasksResponse]:
    tasks = []
    for entry in entries:
        task = entry.task
        if entry.removed is None and task.task_id not in part.sent and question.selection.matches(task):
            part.sent.add(task.task_id)
            tasks.append(part.named(task))
    for start in range(0, len(tasks), STREAM_PAGE_TASKS):
        batch = tasks[start : start + STREAM_PAGE_TASKS]
        summary.task_count += len(batch)
        yield pb.StreamStoreImageTasksResponse(
            page=pb.StreamStoreImageTasksResponse.Page(
                target=part.target.message(), store_image_task_results=batch
            )
        )


def _ended(
    part: _Part, summary: pb.StreamStoreImageTasksResponse.Summary
) -> pb.StreamStoreImageTasksResponse:
    summary.target_count += 1
    if part.source == pb.SOURCE_STALE:
        summary.stale_target_count += 1
    elif part.error is not None:
        summary.failed_target_count += 1
    return pb.StreamStoreImageTasksResponse(outcome=part.outcome())


def _fail_if_all_did(parts: Sequence[_Part]) -> None:
    if not parts or any(part.source != pb.SOURCE_NONE for part in parts):
        return
    errors = [_error_of(part) for part in parts]
    if len(errors) == 1:
        raise errors[0].again()
    raise all_failed(errors)


def _error_of(part: _Part) -> Error:
    assert part.error is not None
    return part.error


def _by_target(part: _Part) -> Target:
    return part.target


def _left_out(target: Target) -> Error:
    return Aborted(
        "LEFT_OUT",
        "failed on an earlier page of this listing, or was not part of it: left out to its end",
        account=target.account,
        region=target.region,
    )


def _too_late() -> Error:
    return DeadlineExceeded("DEADLINE", "the target had not answered when the call's deadline was near")
