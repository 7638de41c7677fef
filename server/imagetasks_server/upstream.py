"""The seam to AWS as the gateway sees it: one call to EC2 for one target, paid and limited in time.

`main` fills `ReadPage` with `ec2`, tests fill it with a fake; one contract suite runs on both.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.budget import Budget
from imagetasks_server.clock import Clock
from imagetasks_server.errors import (
    Error,
    Exhausted,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from imagetasks_server.metrics import Metrics
from imagetasks_server.tally import Purpose


@dataclass(frozen=True, slots=True)
class Query:
    """What one call asks EC2.

    Attributes:
        image_ids: EC2's ImageIds, at most 20; empty lists all tasks.
        dry_run: EC2's DryRun.
        purpose: What for. It makes no other query.
    """

    image_ids: tuple[str, ...] = ()
    dry_run: bool = False
    purpose: Purpose = field(default=Purpose(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Page:
    """EC2's answer to one call.

    Attributes:
        tasks: In EC2's order, complete with target and task id.
        next_token: EC2's token of the next page; None on the last.
    """

    tasks: Sequence[pb.StoreImageTaskResult]
    next_token: str | None = None


class ReadPage(Protocol):
    """One call to EC2 for one target.

    Raises:
        PageExpired: EC2 no longer takes the token.
        ImagesNotFound: EC2 does not know some of the image ids.
        Error: Whatever else went wrong; a dry run always ends in an error, as EC2's does.
    """

    async def __call__(self, query: Query, token: str | None) -> Page:
        """Ask EC2."""
        ...


Asking: TypeAlias = Callable[[Purpose, bool], contextlib.AbstractContextManager[None]]


def untold(_purpose: Purpose, _continued: bool) -> contextlib.AbstractContextManager[None]:  # noqa: FBT001  # of `Asking`
    """Tells nobody."""
    return contextlib.nullcontext()


class PageExpired(Unavailable):
    """EC2 no longer takes its own page token."""

    def __init__(self, message: str, *, aws_code: str = "", aws_request_id: str = "") -> None:
        super().__init__("AWS_PAGE_EXPIRED", message, aws_code=aws_code, aws_request_id=aws_request_id)


class ImagesNotFound(NotFound):
    """EC2 does not know some of the image ids, in EC2's words."""

    def __init__(self, image_ids: Iterable[str], *, aws_request_id: str = "") -> None:
        self.image_ids = tuple(sorted(set(image_ids)))
        names = ", ".join(self.image_ids)
        text = (
            f"The image id '[{names}]' does not exist"
            if len(self.image_ids) == 1
            else f"The image ids '[{names}]' do not exist"
        )
        super().__init__(
            "IMAGE_NOT_FOUND", text, aws_code="InvalidAMIID.NotFound", aws_request_id=aws_request_id
        )


class Upstream:
    """EC2, for one target.

    Args:
        read_page: Asks EC2.
        budget: What pays for it.
        clock: Unix seconds.
        timeout: Seconds one call may take, its retries included.
        remember_refusals_for: Seconds for which EC2 is not asked again after it refused for a reason
            that only somebody's action changes.
        metrics: Count what is asked. Absent: counted for nobody.
        asking: Stands around each call; told what for, and whether it asks for a page after the first.
    """

    def __init__(
        self,
        read_page: ReadPage,
        budget: Budget,
        clock: Clock,
        *,
        timeout: float,
        remember_refusals_for: float,
        metrics: Metrics | None = None,
        asking: Asking = untold,
    ) -> None:
        self.budget = budget
        self._read_page = read_page
        self._clock = clock
        self._timeout = timeout
        self._remember_for = remember_refusals_for
        self._refusal: Error | None = None
        self._refused_until = 0.0
        self._metrics = metrics or Metrics()
        self._asking = asking

    async def pay(self, *, private: bool = False) -> None:
        """Wait until the budget has paid for one call.

        Raises:
            Error: EC2 refused a moment ago, and would again.
        """
        if self._refusal is not None and self._clock() < self._refused_until:
            raise self._refusal.again()
        while not self.budget.pay(private=private):  # nothing but time helps
            wait = self.budget.wait(private=private)
            self.budget.waited += wait
            await asyncio.sleep(wait)

    async def pay_again(self, purpose: Purpose) -> None:
        """Pay for one more attempt of a call, while its time limit runs.

        Raises:
            Error: As `pay`; Exhausted when most of the time would go by.
        """
        wait = self.budget.wait()
        if wait > self._timeout / 2:
            raise Exhausted("BUDGET_EXHAUSTED", "the call cannot be tried again soon", retry_after=wait)
        await self.pay()
        self._count(purpose)

    async def ask(self, query: Query, token: str | None = None) -> Page:
        """One call that has been paid.

        Raises:
            Error: As `ReadPage`; Unavailable when it takes too long.
        """
        purpose = query.purpose
        self._count(purpose)
        began = time.perf_counter()
        try:
            with self._asking(purpose, token is not None):
                return await self._ask(query, token)
        except Error as error:
            self._metrics.ec2_failed(purpose.kind, error.reason)()
            raise
        finally:
            self._metrics.ec2_seconds(purpose.kind)(time.perf_counter() - began)

    def _count(self, purpose: Purpose) -> None:
        purpose.tally.calls += 1
        self._metrics.ec2_called(purpose.kind, purpose.tally.payer)()

    async def _ask(self, query: Query, token: str | None) -> Page:
        try:
            async with asyncio.timeout(self._timeout):
                page = await self._read_page(query, token)
        except TimeoutError:
            raise Unavailable("AWS_TIMEOUT", f"EC2 did not answer within {self._timeout:g} s") from None
        except Exhausted as error:
            # Not before that will it be asked again.
            error.retry_after = max(error.retry_after or 0.0, self.budget.wait())
            raise
        except (PermissionDenied, FailedPrecondition) as error:
            if error.reason != "DRY_RUN_OPERATION":
                self._refusal, self._refused_until = error.again(), self._clock() + self._remember_for
            raise
        self._refusal = None
        return page
