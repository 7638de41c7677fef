"""One question over many views: waits for what must be read, merges, pages, and says how each target ended.

Kept: the bytes of answers that came from views alone. Their key is the question, the place in the
listing and the targets. Who asks is not in the key: that was decided before.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from cachetools import LRUCache

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Aborted, Error, NotFound, all_failed
from imagetasks_server.parts import Part, Question, progress, too_late
from imagetasks_server.selection import Order, Selection
from imagetasks_server.tally import How
from imagetasks_server.targets import Resolution
from imagetasks_server.tokens import PageToken
from imagetasks_server.tracked import Registry
from imagetasks_server.view import Entry, View

MAX_PAGE_TASKS: Final = 1000
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
STREAM_PAGE_TASKS: Final = 200

Stood: TypeAlias = tuple[View, int, float]
"""A view as it was: its revision and its read time."""


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


class Answer:
    """A serialised DescribeStoreImageTasksResponse, and what it came from.

    Args:
        message: Its bytes.
        behind: The views that it came from, each as it was; empty: from more than views.

    Attributes:
        message: As given.
    """

    __slots__ = ("__weakref__", "_behind", "message")

    def __init__(self, message: bytes, behind: Sequence[Stood] = ()) -> None:
        self.message = message
        self._behind = behind

    @property
    def is_of_views(self) -> bool:
        """Whether it came from views alone."""
        return bool(self._behind)

    def stands(self, not_before: float) -> bool:
        """Whether the same question has the same answer, in which nothing is older than this (Unix seconds).

        It has while no view behind it was read or changed since.
        """
        for view, revision, read_time in self._behind:
            if read_time < not_before or view.revision != revision or view.read_time != read_time:
                return False
        return self.is_of_views


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
        self._kept: LRUCache[tuple[object, ...], Answer] = LRUCache(
            cache_bytes, getsizeof=lambda kept: len(kept.message)
        )

    async def describe(self, question: Question, place: Place, resolution: Resolution) -> Answer:
        """One page over all targets.

        Raises:
            Error: Every target failed, or the only one did, or it does not know an image.
        """
        parts, out = self._parts(resolution, place.token)
        key = (place.fingerprint, place.page_size, place.after, resolution.targets)
        if not out and (kept := self._kept.get(key)) and kept.stands(question.not_before):
            question.tally.answered(How.CACHED, len(parts))
            return kept
        alone = not out and all(part.is_fresh(question) for part in parts)
        behind = [(part.view, part.view.revision, part.view.read_time or 0.0) for part in parts if alone]
        async with contextlib.aclosing(progress(parts, question, self._clock)) as news:
            async for _ in news:
                pass
        for part in (*parts, *out):
            question.tally.answered(part.how(question.tally))
        _fail_if_all_did([*parts, *out])
        if len(parts) == 1 and not out:
            await self._check_images(question, parts[0])
        page = _page(question, place, parts, out).SerializeToString()
        answer = Answer(page, behind)
        if behind and len(page) <= self._kept.maxsize:
            self._kept[key] = answer
        return answer

    async def stream(
        self, question: Question, resolution: Resolution, access: Access
    ) -> AsyncGenerator[pb.StreamStoreImageTasksResponse]:
        """Pages as targets answer, an outcome for each target, and a summary.

        A target that the caller may not see any more ends as one that does not exist.
        """
        parts, failed = self._parts(resolution, streamed=True)
        summary = pb.StreamStoreImageTasksResponse.Summary()
        rows = {part: _Rows(question.selection, part) for part in parts}
        for part in failed:
            _count(part, summary, question)
            yield pb.StreamStoreImageTasksResponse(outcome=part.outcome())
        async with contextlib.aclosing(progress(parts, question, self._clock)) as news:
            async for part in news:
                if part not in rows:
                    continue
                for page in rows[part].new_pages():
                    if not _may_see(access, part):
                        break
                    summary.task_count += len(page.store_image_task_results)
                    yield pb.StreamStoreImageTasksResponse(page=page)
                ending = part if _may_see(access, part) else _lost(part)
                if ending.settled:
                    del rows[part]
                    _count(ending, summary, question)
                    yield pb.StreamStoreImageTasksResponse(outcome=ending.outcome())
        yield pb.StreamStoreImageTasksResponse(summary=summary)

    async def permissions(self, question: Question, resolution: Resolution) -> Answer:
        """A dry run over all targets: OK where permitted.

        Raises:
            Error: One target was asked, and this is EC2's answer; or none could be asked.
        """
        parts, failed = self._parts(resolution)

        async def ask(part: Part) -> None:
            assert part.tracked is not None
            try:
                async with asyncio.timeout(question.seconds_left(self._clock)):
                    part.fail(await part.tracked.lookups.permission(question.caller, question.tally))
            except TimeoutError:
                part.fail(too_late())
            except Error as error:
                part.fail(error)

        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(ask(part))
        parts += failed
        if len(parts) == 1:
            raise _error_of(parts[0]).again()
        for part in parts:
            if _error_of(part).reason == "DRY_RUN_OPERATION":
                part.error, part.source = None, pb.SOURCE_LIVE
        _fail_if_all_did(parts)
        return Answer(
            pb.DescribeStoreImageTasksResponse(target_outcomes=_outcomes(parts)).SerializeToString()
        )

    def _parts(
        self, resolution: Resolution, token: PageToken | None = None, *, streamed: bool = False
    ) -> tuple[list[Part], list[Part]]:
        """The parts to be answered, and those that are out from the start."""
        parts, out = [], []
        for target in resolution.targets:
            part = Part(target, self._registry.of(target), streamed=streamed)
            if token is None or target.region in token.targets.get(target.account, ()):
                parts.append(part)
            else:
                part.fail(_left_out())
                out.append(part)
        for target, error in resolution.failed:
            part = Part(target)
            part.fail(error)
            out.append(part)
        return parts, out

    async def _check_images(self, question: Question, part: Part) -> None:
        """Only one target can be asked whether an image exists: AMI ids are regional."""
        if not question.selection.newest_only:
            return
        known = {entry.task.ami_id for entry in part.view.selected(question.selection)}
        unknown = question.selection.image_ids - known
        if not unknown:
            return
        assert part.tracked is not None
        missing: Error | None
        try:
            async with asyncio.timeout(question.seconds_left(self._clock)):
                missing = await part.tracked.lookups.missing_images(unknown, question.caller, question.tally)
        except TimeoutError:
            missing = too_late()
        except Error as error:
            missing = error
        if missing is not None:
            raise missing.at(part.target.account, part.target.region)


class _Rows:
    """What a stream sends of one target: each task once, pages of a running read first."""

    def __init__(self, selection: Selection, part: Part) -> None:
        self._selection = selection
        self._part = part
        self._sent: set[str] = set()
        self._pages_taken = 0

    def new_pages(self) -> Iterator[pb.StreamStoreImageTasksResponse.Page]:
        """What has come since the last call; when the target answered, also what its pages lacked."""
        part = self._part
        read_pages = part.read.pages if part.read else []
        while self._pages_taken < len(read_pages):
            self._pages_taken += 1
            yield from self._pages(read_pages[self._pages_taken - 1])
        if part.settled and part.has_rows:
            yield from self._pages(part.view.selected(self._selection))

    def _pages(self, entries: Iterable[Entry]) -> Iterator[pb.StreamStoreImageTasksResponse.Page]:
        tasks = []
        for entry in entries:
            task = entry.task
            if entry.task_id not in self._sent and self._selection.matches(task):
                self._sent.add(entry.task_id)
                tasks.append(self._part.target.named(task))
        target = self._part.target.message()
        for start in range(0, len(tasks), STREAM_PAGE_TASKS):
            batch = tasks[start : start + STREAM_PAGE_TASKS]
            yield pb.StreamStoreImageTasksResponse.Page(target=target, store_image_task_results=batch)


def _may_see(access: Access, part: Part) -> bool:
    return access.permission.allows(part.target.account, part.target.region)


def _lost(part: Part) -> Part:
    ending = Part(part.target)
    account = part.target.account
    ending.fail(NotFound("UNKNOWN_ACCOUNT", f"There is no account {account!r}", account=account))
    return ending


def _count(part: Part, summary: pb.StreamStoreImageTasksResponse.Summary, question: Question) -> None:
    question.tally.answered(part.how(question.tally))
    summary.target_count += 1
    if part.source == pb.SOURCE_STALE:
        summary.stale_target_count += 1
    elif part.error is not None:
        summary.failed_target_count += 1


def _page(
    question: Question, place: Place, parts: Sequence[Part], out: Sequence[Part]
) -> pb.DescribeStoreImageTasksResponse:
    response = pb.DescribeStoreImageTasksResponse(target_outcomes=_outcomes([*parts, *out]))
    results = response.store_image_task_results
    answering = [part for part in parts if part.has_rows]
    size = 0
    last: Order | None = None
    for entry, part in _merged(question.selection, answering, place.after):
        size += entry.task.ByteSize()
        full = len(results) == (place.page_size or MAX_PAGE_TASKS)
        if last is not None and (full or (place.page_size is None and size > MAX_PAGE_BYTES)):
            response.next_token = _next_token(question, place, last, answering).encode()
            break
        results.append(part.target.named(entry.task))
        last = entry.order
    return response


def _merged(selection: Selection, parts: Sequence[Part], after: Order | None) -> Iterator[tuple[Entry, Part]]:
    """The rows of all parts, newest first. Two names of one account show its tasks once."""
    by_view = {id(part.view): part for part in reversed(parts)}
    streams = [_rows_of(part, selection, after) for part in by_view.values()]
    return heapq.merge(*streams, key=lambda row: row[0].order)


def _rows_of(part: Part, selection: Selection, after: Order | None) -> Iterator[tuple[Entry, Part]]:
    return ((entry, part) for entry in part.view.selected(selection, after))


def _next_token(question: Question, place: Place, last: Order, answering: Sequence[Part]) -> PageToken:
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


def _outcomes(parts: Sequence[Part]) -> list[pb.TargetOutcome]:
    return [part.outcome() for part in sorted(parts, key=lambda part: part.target)]


def _fail_if_all_did(parts: Sequence[Part]) -> None:
    if not parts or any(part.source != pb.SOURCE_NONE for part in parts):
        return
    errors = [_error_of(part) for part in parts]
    raise errors[0].again() if len(errors) == 1 else all_failed(errors)


def _error_of(part: Part) -> Error:
    assert part.error is not None
    return part.error


def _left_out() -> Error:
    return Aborted(
        "LEFT_OUT", "failed on an earlier page of this listing, or was not part of it: left out to its end"
    )
