"""The RPCs: check the request, ask below, answer. Nothing here waits, merges or speaks to AWS."""

import contextlib
import dataclasses
import importlib.metadata
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.answers import Answers, Place
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import InvalidRequest
from imagetasks_server.parts import Question, seconds_before
from imagetasks_server.repeats import Again, Repeats
from imagetasks_server.selection import (
    MAX_RESULTS,
    Selection,
    describe_selection,
    fingerprint,
    selector_selection,
)
from imagetasks_server.tally import Tally
from imagetasks_server.targets import Target, Targets
from imagetasks_server.tokens import PageToken, ResumeToken
from imagetasks_server.tracked import Registry
from imagetasks_server.waiting import Waiting
from imagetasks_server.watching import Asked, Watching

MAX_ACCOUNTS: Final = 2000
# AWS has fewer than fifty.
MAX_REGIONS: Final = 100
NANOS: Final = 1_000_000_000

# Once: it is read from the disk.
_VERSION: Final = importlib.metadata.version("imagetasks")

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class Call:
    """What the boundary knows of a call.

    Attributes:
        deadline: Unix seconds at which the answer must be there.
        caller: Who calls.
        tally: Told in the call's record.
        access: What it may see, now and while the call lasts.
        message: The request, as it was sent, if that is known.
        longest: Unix seconds. Where the caller set no deadline, a wait may be asked to last until then; 0: no
            longer than `deadline`.
    """

    deadline: float
    caller: str = ""
    tally: Tally = dataclasses.field(default_factory=Tally)
    access: Access = dataclasses.field(default_factory=Access)
    message: bytes | None = None
    longest: float = 0.0


class Service:
    """StoreImageTaskService.

    Args:
        targets: Which accounts and Regions there are.
        registry: What is kept of each.
        answers: Answers questions over them.
        watching: Answers watches.
        waiting: Answers waits.
        clock: Unix seconds.
        default_max_age: Seconds an answer may be old where the request does not say.
        stale_for: Seconds for which the last good state may stand in.

    Attributes:
        again: By method, what answers a request at once if it can, because it was asked before. It is given
            the request as it was sent, the caller's permission and the call's tally.
    """

    def __init__(
        self,
        *,
        targets: Targets,
        registry: Registry,
        answers: Answers,
        watching: Watching,
        waiting: Waiting,
        clock: Clock,
        default_max_age: float,
        stale_for: float,
    ) -> None:
        self._targets = targets
        self._registry = registry
        self._answers = answers
        self._watching = watching
        self._waiting = waiting
        self._clock = clock
        self._default_max_age = default_max_age
        self._stale_for = stale_for
        self._repeats = Repeats(targets, clock)
        self.again: Mapping[str, Again] = {"DescribeStoreImageTasks": self._repeats.answer}

    async def describe_store_image_tasks(
        self, request: pb.DescribeStoreImageTasksRequest, call: Call
    ) -> bytes:
        """One page, as a serialised DescribeStoreImageTasksResponse."""
        checked = _checked(request)
        token = PageToken.decode(request.next_token, checked.fingerprint) if request.next_token else None
        floor = token.floor if token else None
        question = self._question(checked.selection, request, call, not_before=floor)
        place = Place(checked.fingerprint, checked.page_size, token)
        while True:
            permission, version = call.access.permission, self._targets.version
            resolution = await self._targets.resolve(request.accounts, request.regions, permission=permission)
            call.tally.asks(resolution.targets)
            if request.dry_run:
                answer = await self._answers.permissions(question, resolution)
            else:
                answer = await self._answers.describe(question, place, resolution)
            # What may be seen may have become less, or more, while it was read.
            if call.access.permission is permission:
                break
        if call.message is not None:
            self._repeats.keep(
                call.message,
                permission,
                answer,
                call.tally,
                version=version,
                max_age=self._max_age(request),
                floor=floor,
            )
        return answer.message

    def stream_store_image_tasks(
        self, request: pb.StreamStoreImageTasksRequest, call: Call
    ) -> AsyncGenerator[pb.StreamStoreImageTasksResponse]:
        """Pages, outcomes and a summary."""
        return self._stream(request, call)

    async def list_targets(self, request: pb.ListTargetsRequest, call: Call) -> pb.ListTargetsResponse:
        """The targets and how the gateway stands with each."""
        _check_names(request.accounts, request.regions)
        while True:
            permission = call.access.permission
            resolution = await self._targets.resolve(request.accounts, request.regions, permission=permission)
            # What may be seen may have become less, or more, meanwhile.
            if call.access.permission is permission:
                break
        call.tally.asks(resolution.targets)
        states = [self._state(target) for target in resolution.targets]
        states += [
            pb.TargetState(target=target.message(), last_error=error.status())
            for target, error in resolution.failed
        ]
        states.sort(key=lambda state: (state.target.account, state.target.region))
        return pb.ListTargetsResponse(targets=states, server_version=_VERSION)

    def watch_store_image_tasks(
        self, request: pb.WatchStoreImageTasksRequest, call: Call
    ) -> AsyncGenerator[pb.WatchStoreImageTasksResponse]:
        """A snapshot, then changes."""
        asked = _asked(request.selector)
        token = ResumeToken.decode(request.resume_token, asked.fingerprint) if request.resume_token else None
        return self._watching.watch(
            asked, token, call.access, require_resume=request.require_resume, tally=call.tally
        )

    async def wait_store_image_tasks(
        self, request: pb.WaitStoreImageTasksRequest, call: Call
    ) -> pb.WaitStoreImageTasksResponse:
        """The tasks, when all of them have ended."""
        now = self._clock()
        until = now + seconds_before(call.deadline, now)
        if request.HasField("timeout"):
            longest = now + seconds_before(max(call.deadline, call.longest), now)
            until = min(longest, now + _seconds("timeout", request.timeout))
        return await self._waiting.wait(
            _asked(request.selector),
            call.access,
            until=until,
            wait_for_appearance=request.wait_for_appearance,
            tally=call.tally,
        )

    async def _stream(
        self, request: pb.StreamStoreImageTasksRequest, call: Call
    ) -> AsyncGenerator[pb.StreamStoreImageTasksResponse]:
        selector = request.selector
        selection = selector_selection(selector)
        _check_names(selector.accounts, selector.regions, "selector.")
        question = self._question(selection, request, call)
        resolution = await self._targets.resolve(
            selector.accounts, selector.regions, permission=call.access.permission
        )
        call.tally.asks(resolution.targets)
        answering = self._answers.stream(question, resolution, call.access)
        async with contextlib.aclosing(answering) as messages:
            async for message in messages:
                yield message

    def _question(
        self,
        selection: Selection,
        request: pb.DescribeStoreImageTasksRequest | pb.StreamStoreImageTasksRequest,
        call: Call,
        *,
        not_before: float | None = None,
    ) -> Question:
        max_age = self._max_age(request)
        if not_before is None:
            not_before = self._clock() - max_age
        return Question(
            selection=selection,
            not_before=not_before,
            forbid_stale=request.forbid_stale,
            deadline=call.deadline,
            stale_after=self._clock() - self._stale_for,
            caller=call.caller,
            tally=call.tally,
        )

    def _max_age(self, request: pb.DescribeStoreImageTasksRequest | pb.StreamStoreImageTasksRequest) -> float:
        return _seconds("max_age", request.max_age) if request.HasField("max_age") else self._default_max_age

    def _state(self, target: Target) -> pb.TargetState:
        """What is known, without counting as a use of it: whoever lists targets keeps none alive."""
        budget = self._registry.budget_of(target)
        state = pb.TargetState(
            target=target.message(),
            budget=pb.Budget(
                available=budget.available(), capacity=budget.capacity, refill_per_second=budget.refill
            ),
            region_source=self._targets.source(target.account),
        )
        tracked = self._registry.peek(target)
        if tracked is None:
            return state
        view, reader, interval = tracked.view, tracked.reader, tracked.poller.interval
        state.task_count, state.in_progress_count = len(view), view.in_progress
        if view.read_time is not None:
            state.read_time.CopyFrom(timestamp(view.read_time))
        if interval is not None:
            state.poll_interval.FromMicroseconds(round(interval * 1_000_000))
        if reader.last_error is not None:
            state.last_error.CopyFrom(reader.last_error.at(target.account, target.region).status())
        return state


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a describe asks for, by EC2's rules."""

    selection: Selection
    page_size: int | None
    fingerprint: str


def _checked(request: pb.DescribeStoreImageTasksRequest) -> _Checked:
    selection = describe_selection(request.image_ids, request.filters)
    page_size = _page_size(request)
    _check_names(request.accounts, request.regions)
    return _Checked(selection, page_size, _fingerprint(request))


def _fingerprint(request: pb.DescribeStoreImageTasksRequest) -> str:
    filters = [(each.name, list(each.values)) for each in request.filters]
    return fingerprint(list(request.image_ids), filters, list(request.accounts), list(request.regions))


def _page_size(request: pb.DescribeStoreImageTasksRequest) -> int | None:
    if not request.HasField("max_results"):
        return None
    if not 1 <= request.max_results <= MAX_RESULTS:
        raise InvalidRequest("max_results", f"1 to {MAX_RESULTS}, not {request.max_results}")
    if request.image_ids:
        raise InvalidRequest("max_results", "not together with image_ids", reason="FIELD_CONFLICT")
    return request.max_results


def _check_names(accounts: Sequence[str], regions: Sequence[str], prefix: str = "") -> None:
    for field, names, most, pattern, what in (
        (
            "accounts",
            accounts,
            MAX_ACCOUNTS,
            _ACCOUNT,
            "an account's name: letters, digits, '_', '.' and '-'",
        ),
        ("regions", regions, MAX_REGIONS, _REGION, 'a Region, as "eu-central-1"'),
    ):
        if len(names) > most:
            raise InvalidRequest(f"{prefix}{field}", f"at most {most}")
        for index, name in enumerate(names):
            if not pattern.fullmatch(name):
                raise InvalidRequest(f"{prefix}{field}[{index}]", f"{name[:64]!r} is not {what}")


def _seconds(field: str, duration: Duration) -> float:
    if duration.seconds < 0 or not 0 <= duration.nanos < NANOS:
        raise InvalidRequest(field, "not negative, and nanos below one second")
    return duration.seconds + duration.nanos / NANOS


def _asked(selector: pb.TaskSelector) -> Asked:
    selection = selector_selection(selector)
    _check_names(selector.accounts, selector.regions, "selector.")
    print_ = fingerprint(
        list(selector.image_ids),
        [(each.name, list(each.values)) for each in selector.filters],
        list(selector.accounts),
        list(selector.regions),
    )
    return Asked(selection, selector.accounts, selector.regions, print_)
