"""An EC2 in memory, to stand behind the gateway in tests: EC2's rules, faults by script, calls counted.

    ec2 = FakeEc2(clock)                        # one target, by default main / eu-central-1
    task = ec2.add()                            # a task in progress, started now
    ec2.progress(task, 40); ec2.end(task); ec2.end(other, failed="NoSuchBucket"); ec2.remove(task)
    page = await ec2.read_page(Query(), None)   # what the gateway calls: `ReadPage`
    ec2.calls                                   # every call so far: its query and its token

Faults: `ec2.fail(error)` makes the next call fail, `ec2.fail(error, times=None)` every call until
`ec2.recover()`; `hold = ec2.hang()` stops calls until `hold.release()`, after `await hold.reached()`
one stands there; `ec2.between = lambda call: ...` runs before each call is answered, so that the list
can move between two pages; `ec2.expire_tokens()` makes the tokens given so far useless.
`aws_error("RequestLimitExceeded", status=503)` is EC2's error as the gateway sees it.

EC2 does not say whether its tokens hold a place or a number. The fake's hold a number unless told
otherwise, which is the worse: tasks that start between two pages push others onto the next page again.

    world = FakeWorld(clock)                    # accounts with Regions, for a whole gateway
    ec2 = world.ec2("main", "eu-central-1")
    world.accounts                              # by name: what `Targets` and `main` take for accounts

Pure: no sockets, no time but the clock's.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from botocore.exceptions import ClientError

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.aws_errors import translate
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, Exhausted
from imagetasks_server.targets import Identity, Target
from imagetasks_server.task_xml import task_id
from imagetasks_server.upstream import Page, Query, ReadPage

MAX_PAGE: Final = 200
MAX_IDS: Final = 20
HISTORY: Final = timedelta(days=31)
# What calls sent at once would really have in common: they do not finish in the turn they began in.
TURNS: Final = 1

STATES: Final = {
    "InProgress": pb.STORE_TASK_STATE_IN_PROGRESS,
    "Completed": pb.STORE_TASK_STATE_COMPLETED,
    "Failed": pb.STORE_TASK_STATE_FAILED,
}
_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")

TARGET: Final = Target("main", "eu-central-1", "123456789012", "aws")


def aws_error(
    code: str,
    message: str = "",
    *,
    status: int = 400,
    request_id: str = "f1e2d3c4",
    operation: str = "DescribeStoreImageTasks",
    credentials_proven: bool = True,
) -> Error:
    """An error as EC2 answers it, in the gateway's words."""
    answer = {
        "Error": {"Code": code, "Message": message or f"EC2 says {code}"},
        "ResponseMetadata": {"RequestId": request_id, "HTTPStatusCode": status},
    }
    return translate(ClientError(answer, operation), credentials_proven=credentials_proven)


def image(number: int) -> str:
    """A well-formed AMI id."""
    return f"ami-{number:017x}"


@dataclass(eq=False)
class Task:
    """A store task as EC2 keeps it; what is None is not sent."""

    ami_id: str | None
    started: datetime | None
    bucket: str | None = "archive"
    key: str | None = None
    state: str | None = "InProgress"
    percentage: int | None = 0
    reason: str | None = None
    number: int = 0

    def send(self, message: pb.StoreImageTaskResult, target: Target) -> None:
        """As EC2's answer is decoded."""
        start = None
        if self.started is not None:
            message.task_start_time.FromDatetime(self.started)
            start = (message.task_start_time.seconds, message.task_start_time.nanos)
        for member, value in (
            ("ami_id", self.ami_id),
            ("bucket", self.bucket),
            ("s3_object_key", self.key),
            ("progress_percentage", self.percentage),
            ("ec2_store_task_state", self.state),
            ("store_task_failure_reason", self.reason),
        ):
            if value is not None:
                setattr(message, member, value)
        message.store_task_state = STATES.get(self.state or "", pb.STORE_TASK_STATE_UNSPECIFIED)
        message.account, message.account_id, message.region = target.account, target.account_id, target.region
        prefix = f"{target.partition}\0{target.account_id}\0{target.region}\0"
        message.task_id = task_id(prefix, (self.ami_id, self.bucket, self.key, start))


@dataclass(frozen=True)
class Call:
    """One call that the gateway made."""

    query: Query
    token: str | None = None


def _place(task: Task) -> tuple[float, int]:
    """Newest first; what has no start time last; of equals the later one first."""
    return (float("inf") if task.started is None else -task.started.timestamp(), -task.number)


class Hold:
    """Where calls stop until it is released."""

    def __init__(self) -> None:
        self._gate = asyncio.Event()
        self._reached = asyncio.Event()
        self.waiting = 0

    def release(self) -> None:
        """Let everybody go, also who comes later."""
        self._gate.set()

    async def reached(self) -> None:
        """Wait until a call stands here, or has."""
        await self._reached.wait()

    async def pass_through(self) -> None:
        self._reached.set()
        self.waiting += 1
        try:
            await self._gate.wait()
        finally:
            self.waiting -= 1


class FakeEc2:
    """EC2's DescribeStoreImageTasks for one account in one Region.

    Args:
        clock: Unix seconds.
        target: Which account and Region it is.
        page_size: Tasks of a page, at most EC2's 200.
        steady_tokens: Tokens hold a place instead of a number.

    Attributes:
        tasks: All there are, in no order.
        images: AMIs that exist without a task.
        calls: Every call so far.
        most_at_once: Calls that were under way at the same time.
        cancelled: Calls that were cancelled under way.
        denied: A policy denies the action here.
        enabled: The account has enabled this Region.
    """

    def __init__(
        self,
        clock: Clock,
        target: Target = TARGET,
        *,
        page_size: int = MAX_PAGE,
        steady_tokens: bool = False,
    ) -> None:
        self.target = target
        self.tasks: list[Task] = []
        self._ever: list[Task] = []
        self.images: set[str] = set()
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.cancelled = 0
        self.denied = False
        self.enabled = True
        self.between: Callable[[Call], None] = lambda _: None
        self._clock = clock
        self._page_size = page_size
        self._steady_tokens = steady_tokens
        self._generation = 0
        self._number = 0
        self._faults: deque[Error] = deque()
        self._standing_fault: Error | None = None
        self._hold: Hold | None = None
        self._under_way = 0

    # What happens at EC2.

    def add(self, ami_id: str | None = None, *, age: float = 0.0, **members: Any) -> Task:
        """Start a task `age` seconds ago. Members as of `Task`."""
        self._number += 1
        ami_id = ami_id or image(self._number)
        # EC2 sends milliseconds.
        started = datetime.fromtimestamp(round(self._clock() - age, 3), UTC)
        task = Task(ami_id, started, **{"key": f"{ami_id}.bin", "number": self._number, **members})
        self.tasks.append(task)
        self._ever.append(task)
        return task

    def add_ended(self, count: int, *, age: float = 3600.0) -> list[Task]:
        """Many completed tasks, one a second, the newest `age` seconds old."""
        return [
            self.add(age=age + number, state="Completed", percentage=100, reason="")
            for number in range(count)
        ]

    def progress(self, task: Task, percentage: int) -> None:
        """The task goes on."""
        task.percentage = percentage

    def end(self, task: Task, *, failed: str | None = None) -> None:
        """The task ends, well or with a failure's reason."""
        if failed is None:
            task.state, task.percentage, task.reason = "Completed", 100, ""
        else:
            task.state, task.reason = "Failed", failed

    def remove(self, task: Task) -> None:
        """EC2 no longer lists the task."""
        self.tasks.remove(task)

    # Faults.

    def fail(self, error: Error, *, times: int | None = 1) -> None:
        """Fail the next calls; None: all until `recover`."""
        if times is None:
            self._standing_fault = error
        else:
            self._faults.extend([error] * times)

    def recover(self) -> None:
        """Fail no more."""
        self._faults.clear()
        self._standing_fault = None

    def hang(self) -> Hold:
        """Stop calls until the hold is released."""
        self._hold = Hold()
        return self._hold

    def expire_tokens(self) -> None:
        """Take no token any more that was given until now."""
        self._generation += 1

    # What the gateway asks.

    @property
    def lists(self) -> int:
        """How many listings were begun."""
        return sum(call == Call(Query()) for call in self.calls)

    async def read_page(self, query: Query, token: str | None = None) -> Page:
        """One call: `ReadPage`."""
        call = Call(query, token)
        self.calls.append(call)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if self._hold is not None:
                await self._hold.pass_through()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._under_way -= 1
        self.between(call)
        if self._faults:
            raise self._at(self._faults.popleft())
        if self._standing_fault is not None:
            raise self._at(self._standing_fault)
        return self._answer(query, token)

    def listed(self) -> list[Task]:
        """What EC2 shows now, newest first."""
        oldest = datetime.fromtimestamp(self._clock(), UTC) - HISTORY
        shown = [task for task in self.tasks if task.started is None or task.started >= oldest]
        return sorted(shown, key=_place)

    def _answer(self, query: Query, token: str | None) -> Page:
        if not self.enabled:
            raise self._at(aws_error("AuthFailure", status=401))
        if self.denied:
            raise self._at(
                aws_error(
                    "UnauthorizedOperation",
                    "You are not authorized to perform this operation. "
                    "Encoded authorization failure message: " + "x" * 300,
                    status=403,
                )
            )
        self._check_ids(query.image_ids)
        start = self._start(token)
        if query.dry_run:
            text = "Request would have succeeded, but DryRun flag is set."
            raise self._at(aws_error("DryRunOperation", text, status=412))
        if query.image_ids:
            return self._of_images(query.image_ids)
        tasks = self.listed()
        page, rest = tasks[start : start + self._page_size], tasks[start + self._page_size :]
        return self._page(page, self._token(start, page[-1]) if rest else None)

    def _of_images(self, image_ids: Sequence[str]) -> Page:
        unknown = set(image_ids) - self.images - {task.ami_id for task in self.tasks}
        if unknown:
            names = ", ".join(sorted(unknown))
            noun, verb = ("id", "does") if len(unknown) == 1 else ("ids", "do")
            raise self._at(
                aws_error("InvalidAMIID.NotFound", f"The image {noun} '[{names}]' {verb} not exist")
            )
        newest: dict[str | None, Task] = {}
        for task in self.listed():
            if task.ami_id in image_ids:
                newest.setdefault(task.ami_id, task)
        return self._page(newest.values(), None)

    def _check_ids(self, image_ids: Sequence[str]) -> None:
        if len(image_ids) > MAX_IDS:
            raise self._at(aws_error("InvalidParameterValue", "The maximum number of image IDs is 20"))
        for image_id in image_ids:
            if not _IMAGE_ID.fullmatch(image_id):
                text = f'Invalid id: "{image_id}" (expecting "ami-...")'
                raise self._at(aws_error("InvalidAMIID.Malformed", text))

    def _token(self, start: int, last: Task) -> str:
        place = f"behind {last.number}" if self._steady_tokens else f"from {start + self._page_size}"
        return f"{self._generation} {place}"

    def _start(self, token: str | None) -> int:
        if token is None:
            return 0
        with contextlib.suppress(ValueError):
            generation, kind, number = token.split()
            if int(generation) == self._generation:
                return self._behind(int(number)) if kind == "behind" else int(number)
        raise self._at(aws_error("InvalidPaginationToken", "The token is not valid or is expired."))

    def _behind(self, number: int) -> int:
        last = next(task for task in self._ever if task.number == number)
        return sum(_place(task) <= _place(last) for task in self.listed())

    def _page(self, tasks: Iterable[Task], token: str | None) -> Page:
        parent = pb.DescribeStoreImageTasksResponse()
        for task in tasks:
            task.send(parent.store_image_task_results.add(), self.target)
        return Page(parent.store_image_task_results, token)

    def _at(self, error: Error) -> Error:
        return error.at(self.target.account, self.target.region)


@dataclass(eq=False)
class FakeAccount:
    """One account: what `Targets` discovers, and its `FakeEc2` by Region.

    Attributes:
        name: As configured.
        account_id: What STS says.
        regions: What DescribeRegions says.
        discovery_fault: Raised by STS while it is set.
        regions_fault: Raised by DescribeRegions while it is set.
        hold: Where discoveries stop while it is set.
        asked: Calls to STS and DescribeRegions so far, by their names.
    """

    name: str
    account_id: str
    regions: tuple[str, ...]
    by_region: dict[str, FakeEc2] = field(default_factory=dict)
    discovery_fault: Exception | None = None
    regions_fault: Exception | None = None
    hold: Hold | None = None
    asked: list[str] = field(default_factory=list)

    async def identity(self) -> Identity:
        self.asked.append("identity")
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.pass_through()
        if self.discovery_fault is not None:
            raise self.discovery_fault
        return Identity("aws", self.account_id)

    async def enabled_regions(self) -> Sequence[str]:
        self.asked.append("enabled_regions")
        await asyncio.sleep(0)
        if self.regions_fault is not None:
            raise self.regions_fault
        return self.regions

    async def warm(self, region: str) -> None:
        """Nothing to warm."""

    def read_page(
        self, target: Target, *, pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]
    ) -> ReadPage:
        """Every call is one attempt, so nothing is paid here."""
        del pay

        async def read_page(query: Query, token: str | None) -> Page:
            try:
                return await self.by_region[target.region].read_page(query, token)
            except Exhausted:
                throttled()
                raise

        return read_page

    async def close(self) -> None:
        """Nothing to close."""


class FakeWorld:
    """Accounts and their Regions.

    Args:
        clock: Unix seconds.
        accounts: Names to Regions. The first has account id 123456789012, further ones count on.
        page_size: Of every Region.
    """

    def __init__(
        self,
        clock: Clock,
        accounts: dict[str, Sequence[str]] | None = None,
        *,
        page_size: int = MAX_PAGE,
    ) -> None:
        self.clock = clock
        self.accounts: dict[str, FakeAccount] = {}
        for number, (name, regions) in enumerate((accounts or {"main": ("eu-central-1",)}).items()):
            account = FakeAccount(name, str(123456789012 + number), tuple(regions))
            for region in regions:
                target = Target(name, region, account.account_id, "aws")
                account.by_region[region] = FakeEc2(clock, target, page_size=page_size)
            self.accounts[name] = account

    def ec2(self, account: str = "main", region: str = "eu-central-1") -> FakeEc2:
        """EC2 of one target."""
        return self.accounts[account].by_region[region]

    def all(self) -> list[FakeEc2]:
        """EC2 of all targets, in order of account and Region."""
        return [
            account.by_region[region]
            for _, account in sorted(self.accounts.items())
            for region in sorted(account.by_region)
        ]

    @property
    def calls(self) -> list[Call]:
        """Every call to any of them."""
        return [call for ec2 in self.all() for call in ec2.calls]
