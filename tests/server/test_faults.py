"""Whatever EC2 does to one target: the others answer, it is named with the reason, and it comes back.

EC2 is a process of its own that fails as `canned.faults` says.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiobotocore.retries.standard
import pytest
from botocore.retries.standard import ExponentialBackoff
from canned_stage import (
    LONG,
    account,
    account_id,
    serving_canned,
    tasks,
    until_time_is_over,
    use_ambient_credentials,
)
from gateway_stage import NO_AGE, Gateway, eventually, our_tasks, outcomes, reason_of
from virtual import VirtualClock

from canned.launch import Canned, canned
from imagetasks.v1 import store_image_tasks_pb2 as pb

T = TypeVar("T")

BAD, GOOD, OTHER = ("main", "eu-bad-1"), ("main", "eu-good-1"), ("other", "eu-bad-1")
NUMBERS = {"main": 1, "other": 2, "lost": 3}
PAGES = 2
TASKS = 200 * (PAGES - 1) + 50
REFUSED_FOR = 30.0


@pytest.fixture(scope="module")
def ec2() -> Iterator[Canned]:
    with canned() as running:
        yield running


@pytest.fixture(autouse=True)
def _three_good_targets(ec2: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ambient_credentials(monkeypatch)
    ec2.recover()
    ec2.post(
        *(
            {
                "account": account_id(NUMBERS[name]),
                "region": region,
                "tasks": tasks(TASKS, first=place * 1000),
            }
            for place, (name, region) in enumerate([BAD, GOOD, OTHER])
        )
    )


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start(ec2: Canned, clock: VirtualClock) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def begin(*more: dict[str, Any], **settings: Any) -> Gateway:
            accounts = [
                account(ec2, "main", 1, [BAD[1], GOOD[1]]),
                account(ec2, "other", 2, [OTHER[1]]),
                *more,
            ]
            return await stack.enter_async_context(serving_canned(clock, accounts, **settings))

        yield begin


def fail(ec2: Canned, fault: str, **more: Any) -> None:
    ec2.fail({"account": account_id(NUMBERS[BAD[0]]), "region": BAD[1], "fault": fault, **more})


@dataclass(frozen=True)
class Told:
    """What a stream told.

    Attributes:
        rows: Tasks per target.
        outcomes: Source and reason per target.
        summary: Its end.
    """

    rows: dict[tuple[str, str], int]
    outcomes: dict[tuple[str, str], tuple[str, str]]
    summary: pb.StreamStoreImageTasksResponse.Summary


async def streamed(gateway: Gateway, **request: Any) -> Told:
    """A stream to its end, which must be whole: one outcome for each target, no task twice, one summary."""
    rows: dict[tuple[str, str], int] = {}
    ends: dict[tuple[str, str], tuple[str, str]] = {}
    seen: set[str] = set()
    events = await gateway.stream(LONG, **request)
    for event in events[:-1]:
        target = event.page.target if event.HasField("page") else event.outcome.target
        key = (target.account, target.region)
        assert key not in ends
        if event.HasField("outcome"):
            ends[key] = (pb.Source.Name(event.outcome.source)[7:], reason_of(event.outcome))
        for task in event.page.store_image_task_results:
            assert task.task_id not in seen
            seen.add(task.task_id)
            rows[key] = rows.get(key, 0) + 1
    summary = events[-1].summary
    assert (summary.task_count, summary.target_count) == (len(seen), len(ends))
    return Told(rows, ends, summary)


async def is_idle(gateway: Gateway) -> None:
    """Nothing of the reads is left, though the gateway goes on."""
    await eventually(lambda: all(each.reader.is_idle and each.lookups.is_idle for each in gateway.registry))
    await eventually(lambda: not our_tasks())


@dataclass(frozen=True)
class Row:
    """A fault and what becomes of its target.

    Attributes:
        fault: As `canned.faults` calls it.
        reason: Of the outcome.
        more: `page` and the like.
        rows: Tasks that a first stream sends of the target before it fails.
        hangs: The answer never ends by itself.
    """

    fault: str
    reason: str
    more: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    hangs: bool = False

    def __str__(self) -> str:
        return self.fault + (" between pages" if self.more.get("page") == 2 else "")


BETWEEN: dict[str, Any] = {"page": 2}
ROWS = [
    Row("throttle", "AWS_THROTTLED"),
    Row("denied", "AWS_UNAUTHORIZED_OPERATION"),
    Row("denied by SCP", "AWS_UNAUTHORIZED_OPERATION"),
    Row("not opted in", "AWS_REGION_NOT_ENABLED"),
    Row("not enabled", "AWS_REGION_NOT_ENABLED"),
    Row("500", "AWS_INTERNAL_ERROR"),
    Row("503", "AWS_UNAVAILABLE"),
    Row("reset", "AWS_UNREACHABLE"),
    Row("hang", "AWS_TIMEOUT", hangs=True),
    Row("slow", "AWS_TIMEOUT", hangs=True),
    Row("garbage", "UPSTREAM_RESPONSE_UNPARSABLE"),
    Row("truncated", "UPSTREAM_RESPONSE_UNPARSABLE"),
    Row("cut", "AWS_UNREACHABLE"),
    Row("credentials expired", "AWS_CREDENTIALS_EXPIRED"),
    Row("clock skew", "AWS_CREDENTIALS_EXPIRED"),
    # A Region that dies between pages: what was sent of it stays sent.
    Row("page token expired", "AWS_PAGE_EXPIRED", BETWEEN, rows=200),
    Row("reset", "AWS_UNREACHABLE", BETWEEN, rows=200),
    Row("hang", "AWS_TIMEOUT", BETWEEN, rows=200, hangs=True),
    Row("throttle", "AWS_THROTTLED", BETWEEN, rows=200),
    Row("truncated", "UPSTREAM_RESPONSE_UNPARSABLE", BETWEEN, rows=200),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_the_failed_target_is_named_the_others_answer_and_the_next_call_recovers(
    row: Row, ec2: Canned, start: Start, clock: VirtualClock
) -> None:
    gateway = await start()

    async def ended(call: Awaitable[T], pages: int = 1 if row.rows else 0) -> T:
        if not row.hangs:
            return await call
        return await until_time_is_over(gateway, clock, (account_id(1), BAD[1]), pages, call)

    fail(ec2, row.fault, **row.more)
    told = await ended(streamed(gateway))
    source = "LIVE" if row.rows else "NONE"
    assert told.outcomes == {BAD: (source, row.reason), GOOD: ("LIVE", ""), OTHER: ("LIVE", "")}
    assert told.rows == {GOOD: TASKS, OTHER: TASKS} | ({BAD: row.rows} if row.rows else {})
    assert told.summary.failed_target_count == 1
    described = await ended(gateway.describe(LONG, max_age=NO_AGE))
    assert outcomes(described) == {BAD: ("NONE", row.reason), GOOD: ("LIVE", ""), OTHER: ("LIVE", "")}
    only = await ended(gateway.refused(LONG, accounts=[BAD[0]], regions=[BAD[1]], max_age=NO_AGE))
    assert only.reason == row.reason
    await is_idle(gateway)

    ec2.recover()
    clock.advance(REFUSED_FOR + 1)
    told = await streamed(gateway, max_age=NO_AGE)
    assert set(told.outcomes.values()) == {("LIVE", "")}
    assert told.rows == {BAD: TASKS, GOOD: TASKS, OTHER: TASKS}

    # What was known before stands in from now on.
    fail(ec2, row.fault)
    clock.advance(REFUSED_FOR + 1)
    told = await ended(streamed(gateway, max_age=NO_AGE), pages=0)
    assert told.outcomes[BAD] == ("STALE", row.reason)
    assert told.rows == {BAD: TASKS, GOOD: TASKS, OTHER: TASKS}
    await is_idle(gateway)


# Faults that pass within a call.


@pytest.fixture
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = ExponentialBackoff(random=lambda: 0.0)
    monkeypatch.setattr(aiobotocore.retries.standard, "ExponentialBackoff", lambda: backoff)


@pytest.mark.usefixtures("_retry_at_once")
@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize(
    "fault", ["500", "503", "reset", "cut", "credentials expired", "clock skew", "page token expired"]
)
async def test_what_passes_at_once_is_seen_by_nobody(
    fault: str, page: int, ec2: Canned, start: Start
) -> None:
    gateway = await start(attempts=3)
    fail(ec2, fault, page=page, times=1)
    told = await streamed(gateway)
    assert set(told.outcomes.values()) == {("LIVE", "")}
    assert told.rows == {BAD: TASKS, GOOD: TASKS, OTHER: TASKS}


# What is wrong before EC2 can say anything: an account whose way to EC2 is not one.


@dataclass(frozen=True)
class Nowhere:
    """Addresses at which nobody answers as they should."""

    refusing: str
    unknown: str
    plaintext: str


@pytest.fixture
def nowhere(ec2: Canned) -> Iterator[Nowhere]:
    # Bound and not listening: nobody else gets the port, and who connects is refused.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{bound.getsockname()[1]}"
        # RFC 6761: a name that never resolves.
        yield Nowhere(refusing, "http://ec2.invalid", ec2.endpoint.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("refusing", "AWS_UNREACHABLE"),
        ("unknown", "AWS_UNREACHABLE"),
        ("plaintext", "AWS_TLS_FAILED"),
    ],
)
async def test_an_account_that_cannot_be_reached_is_named_and_the_others_answer(
    way: str, reason: str, ec2: Canned, nowhere: Nowhere, start: Start
) -> None:
    lost = account(
        ec2, "lost", NUMBERS["lost"], ["eu-lost-1", "eu-lost-2"], endpoint_url=getattr(nowhere, way)
    )
    gateway = await start(lost)
    told = await streamed(gateway)
    assert told.outcomes == {
        BAD: ("LIVE", ""),
        GOOD: ("LIVE", ""),
        OTHER: ("LIVE", ""),
        ("lost", "eu-lost-1"): ("NONE", reason),
        ("lost", "eu-lost-2"): ("NONE", reason),
    }
    assert (await gateway.refused(accounts=["lost"])).reason == reason
    await is_idle(gateway)


@pytest.mark.parametrize("way", ["refusing", "unknown"])
async def test_where_sts_cannot_be_reached_the_account_is_named_and_the_others_answer(
    way: str, ec2: Canned, nowhere: Nowhere, start: Start
) -> None:
    lost = account(ec2, "lost", NUMBERS["lost"], ["eu-lost-1"], sts_endpoint_url=getattr(nowhere, way))
    gateway = await start(lost)
    told = await streamed(gateway)
    assert told.outcomes.pop(("lost", "")) == ("NONE", "AWS_UNREACHABLE")
    assert set(told.outcomes.values()) == {("LIVE", "")}


async def test_a_dead_proxy_is_named_and_the_others_answer(
    ec2: Canned, nowhere: Nowhere, start: Start
) -> None:
    gateway = await start(account(ec2, "lost", NUMBERS["lost"], ["eu-lost-1"], proxy=nowhere.refusing))
    told = await streamed(gateway)
    assert told.outcomes.pop(("lost", "")) == ("NONE", "AWS_UNREACHABLE")
    assert set(told.outcomes.values()) == {("LIVE", "")}


# Isolation.


async def test_shortly_before_the_deadline_a_hanging_target_gets_its_outcome_and_the_others_are_answered(
    ec2: Canned, start: Start, clock: VirtualClock
) -> None:
    gateway = await start(page_timeout=2 * LONG, read_timeout=2 * LONG)
    fail(ec2, "hang")
    bad = (account_id(1), BAD[1])
    told = await until_time_is_over(gateway, clock, bad, 0, streamed(gateway), seconds=LONG - 0.25)
    assert told.outcomes == {BAD: ("NONE", "DEADLINE"), GOOD: ("LIVE", ""), OTHER: ("LIVE", "")}
    assert told.rows == {GOOD: TASKS, OTHER: TASKS}
    call = gateway.describe(LONG, max_age=NO_AGE)
    described = await until_time_is_over(gateway, clock, bad, 0, call, seconds=LONG - 0.25)
    assert outcomes(described) == {BAD: ("NONE", "DEADLINE"), GOOD: ("LIVE", ""), OTHER: ("LIVE", "")}
