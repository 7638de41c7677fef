"""Questions to EC2 that serve one caller: does an image exist, may the gateway do this.

Asked at most once at a time for a target: what several callers want to know goes into one call where
EC2 takes it (20 image ids), each caller in turn, and what EC2 said is remembered for a while. Faults are
not remembered. They are paid from the private part of the budget.
"""

import asyncio
import contextvars
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog
from cachetools import TTLCache

from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, FailedPrecondition, Internal, PermissionDenied
from imagetasks_server.tally import GATEWAY, Kind, Purpose, Tally
from imagetasks_server.telemetry import Event
from imagetasks_server.upstream import ImagesNotFound, Query, Upstream
from imagetasks_server.view import Listing, View

log = structlog.get_logger()

IMAGES_PER_CALL: Final = 20
REMEMBERED: Final = 10_000
# Every image id starts with "ami-", so this is none.
PERMISSION: Final = "permission"

Answer: TypeAlias = Error | None
"""For an image: why it is not there, or None. For the permission: EC2's answer to a dry run."""


@dataclass(slots=True, eq=False)
class _Waiter:
    caller: str
    tally: Tally
    pending: set[str]
    future: asyncio.Future[None]
    answers: dict[str, Answer] = field(default_factory=dict)
    error: Error | None = None


class Lookups:
    """The private questions to one target."""

    def __init__(self, view: View, upstream: Upstream, clock: Clock, *, remember_for: float = 60.0) -> None:
        self._view = view
        self._upstream = upstream
        self._clock = clock
        self._remembered: TTLCache[str, Answer] = TTLCache(REMEMBERED, remember_for, timer=clock)
        # In the order in which they came: the first pays.
        self._waiters: dict[str, dict[_Waiter, None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def missing_images(
        self, image_ids: Iterable[str], caller: str, tally: Tally
    ) -> ImagesNotFound | None:
        """Which of these images EC2 does not know; None if it knows all.

        Args:
            image_ids: Well-formed AMI ids.
            caller: Who asks; callers take turns.
            tally: The call's, on which what EC2 is asked may count.

        Raises:
            Error: EC2 could not be asked.
        """
        answers = await self._ask(frozenset(image_ids), caller, tally)
        missing = [image_id for image_id, answer in answers.items() if answer is not None]
        return ImagesNotFound(missing) if missing else None

    async def permission(self, caller: str, tally: Tally) -> Error:
        """EC2's answer to a dry run: DRY_RUN_OPERATION if permitted, else why not.

        Raises:
            Error: EC2 could not be asked.
        """
        answer = (await self._ask(frozenset({PERMISSION}), caller, tally))[PERMISSION]
        assert answer is not None
        return answer

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._task is None and not self._waiters

    async def close(self) -> None:
        """End what runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _ask(self, questions: frozenset[str], caller: str, tally: Tally) -> dict[str, Answer]:
        waiter = _Waiter(caller, tally, set(questions), asyncio.get_running_loop().create_future())
        for question in questions:
            if question in self._remembered:
                waiter.answers[question] = self._remembered[question]
                waiter.pending.discard(question)
        if waiter.pending:
            for question in waiter.pending:
                self._waiters.setdefault(question, {})[waiter] = None
            self._advance()
            try:
                await waiter.future
            finally:
                self._leave(waiter)
        if waiter.error is not None:
            raise waiter.error.again()
        return waiter.answers

    def _leave(self, waiter: _Waiter) -> None:
        for question in waiter.pending:
            waiters = self._waiters.get(question, {})
            waiters.pop(waiter, None)
            if not waiters:
                self._waiters.pop(question, None)
        if not self._waiters and self._task is not None:
            self._task.cancel()

    def _advance(self) -> None:
        if self._task is None and self._waiters:
            self._task = asyncio.create_task(self._work(), context=contextvars.Context())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error(Event.READ_FAILED, exc_info=error)
            self._fail(list(self._waiters), Internal("INTERNAL", "the question failed inside the gateway"))
        # Somebody may have come while a cancelled task was on its way out.
        self._advance()

    async def _work(self) -> None:
        while self._waiters:
            try:
                await self._upstream.pay(private=True)
            except Error as error:
                self._fail(list(self._waiters), error)
                continue
            # Chosen after the payment: who came while it was waited for goes along.
            if PERMISSION in self._waiters:
                await self._ask_permission()
            else:
                await self._ask_images(self._batch())

    def _batch(self) -> list[str]:
        """The next images to ask for, one of each caller in turn: many questions delay only their own."""
        by_caller: dict[str, list[str]] = {}
        for question, waiters in self._waiters.items():
            for caller in {waiter.caller for waiter in waiters}:
                by_caller.setdefault(caller, []).append(question)
        rounds = itertools.zip_longest(*by_caller.values())
        fair = dict.fromkeys(question for each in rounds for question in each if question is not None)
        return list(itertools.islice(fair, IMAGES_PER_CALL))

    def _purpose(self, kind: Kind, questions: list[str]) -> Purpose:
        """What is asked in one call counts on the tally of one who waits for it."""

        def waiters() -> list[Tally]:
            found = (waiter for each in questions for waiter in self._waiters.get(each, ()))
            return list(dict.fromkeys(waiter.tally for waiter in found))

        return Purpose(kind, next(iter(waiters()), GATEWAY), waiters)

    async def _ask_permission(self) -> None:
        try:
            await self._upstream.ask(Query(dry_run=True, purpose=self._purpose(Kind.DRY_RUN, [PERMISSION])))
        except (FailedPrecondition, PermissionDenied) as answer:
            if answer.reason in {"DRY_RUN_OPERATION", "AWS_UNAUTHORIZED_OPERATION"}:
                self._settle({PERMISSION: answer})
            else:
                self._fail([PERMISSION], answer)
        except Error as error:
            self._fail([PERMISSION], error)
        else:
            self._fail([PERMISSION], Internal("UPSTREAM_CONTRACT", "EC2 answered a dry run with a result"))

    async def _ask_images(self, batch: list[str]) -> None:
        listing = Listing(self._clock(), full=False)
        query = Query(tuple(batch), purpose=self._purpose(Kind.LOOKUP, batch))
        try:
            page = await self._upstream.ask(query)
        except ImagesNotFound as error:
            missing = set(error.image_ids).intersection(batch)
            if missing:
                # The rest of the batch is asked again without them.
                self._settle({image_id: ImagesNotFound([image_id]) for image_id in missing})
            else:
                self._fail(
                    batch, Internal("UPSTREAM_CONTRACT", "EC2 misses images that it was not asked for")
                )
        except Error as error:
            self._fail(batch, error)
        else:
            self._view.apply(listing, page.tasks, self._clock())
            self._settle(dict.fromkeys(batch))

    def _settle(self, answers: dict[str, Answer]) -> None:
        for question, answer in answers.items():
            self._remembered[question] = answer
            for waiter in self._waiters.pop(question, {}):
                waiter.answers[question] = answer
                waiter.pending.discard(question)
                if not waiter.pending and not waiter.future.done():
                    waiter.future.set_result(None)

    def _fail(self, questions: list[str], error: Error) -> None:
        for question in questions:
            for waiter in self._waiters.pop(question, {}):
                waiter.pending.discard(question)
                waiter.error = error
                if not waiter.future.done():
                    waiter.future.set_result(None)
