"""Others who want the same of EC2: a program on the same bucket, a caller who asks for what costs most."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from fake_ec2 import Call, aws_error
from virtual_stage import REGIONS, Stage, staged

from canned.throttle import Bucket
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import Error
from imagetasks_server.service import Call as CallerCall

EC2S = {"capacity": 50, "refill": 0.5}
POLL = 5.0
MINUTES = 10.0
# Of a hostile caller, for each attack.
LOOPS = 3


@dataclass
class Seen:
    """What a caller saw who polls.

    Attributes:
        lags: How old each answer was when it came.
        sources: Where each came from.
        errors: Reasons of calls that failed.
    """

    lags: list[float] = field(default_factory=list)
    sources: list["pb.Source.ValueType"] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def poll(stage: Stage, minutes: float, caller: str = "good") -> Seen:
    """Ask one Region every few seconds."""
    seen = Seen()
    ends = stage.clock() + minutes * 60
    while stage.clock() < ends:
        try:
            outcome = await stage.one(caller=caller)
        except Error as error:
            seen.errors.append(error.reason)
        else:
            seen.sources.append(outcome.source)
            seen.lags.append(stage.clock() - outcome.read_time.ToMicroseconds() / 1e6)
        await asyncio.sleep(POLL)
    return seen


@asynccontextmanager
async def meanwhile(*work: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# Another program.


@dataclass
class Shared:
    """EC2's bucket, of which another program takes something each so many seconds."""

    stage: Stage
    every: float
    ours: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._bucket = Bucket(EC2S["capacity"], EC2S["refill"], self.stage.clock())
        self.stage.world.ec2().between = self._take

    def _take(self, _: Call) -> None:
        self.ours += 1
        if not self._bucket.take(self.stage.clock()):
            self.refused += 1
            raise aws_error("RequestLimitExceeded", status=503)

    async def eat(self) -> None:
        while True:
            self._bucket.take(self.stage.clock())
            await asyncio.sleep(self.every)


@pytest.mark.parametrize("every", [0.1, 1.0, 2.0, 3.0])
def test_beside_a_program_that_eats_the_bucket_throttles_are_rare_and_answers_stale_not_errors(
    every: float,
) -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add_ended(50)
        await stage.one()
        shared = Shared(stage, every)
        async with meanwhile(shared.eat()):
            # Until the bucket is empty.
            await poll(stage, 3)
            before = shared.refused
            seen = await poll(stage, MINUTES)
            if every < 1:
                # Nearly nothing is left.
                error = await stage.error(max_age=0, forbid_stale=True)
                assert error.reason in {"AWS_THROTTLED", "BUDGET_EXHAUSTED"}
        assert seen.errors == []
        assert set(seen.sources) <= {pb.SOURCE_LIVE, pb.SOURCE_CACHED, pb.SOURCE_STALE}
        # At an eighth of the usable refill there is a call each 20 s.
        assert shared.refused - before <= MINUTES * 60 / 20 + 1

        # It has ended: within minutes all is as it was.
        await poll(stage, 5)
        refused = shared.refused
        seen = await poll(stage, MINUTES)
        assert shared.refused == refused
        assert set(seen.sources) <= {pb.SOURCE_LIVE, pb.SOURCE_CACHED}
        assert max(seen.lags) <= POLL

    staged(scenario, budget=EC2S)


def test_a_throttled_caller_is_told_when_it_can_be_asked_again() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().fail(aws_error("RequestLimitExceeded", status=503))
        error = await stage.error()
        assert error.reason == "AWS_THROTTLED"
        # Half the usable refill.
        assert error.retry_after == pytest.approx(1 / 0.2)
        await asyncio.sleep(error.retry_after or 0)
        assert (await stage.one(deadline=0.1)).source == pb.SOURCE_LIVE

    staged(scenario, budget=EC2S)


# A hostile caller.

Attack = Callable[[Stage, "itertools.count[int]"], Awaitable[None]]


async def _unknown_images(stage: Stage, numbers: "itertools.count[int]") -> None:
    await stage.one(
        image_ids=[f"ami-{next(numbers):08x}" for _ in range(20)], caller="hostile", deadline=1000
    )


async def _fresh(stage: Stage, _: "itertools.count[int]") -> None:
    await stage.one(max_age=0, caller="hostile")


async def _fresh_or_nothing(stage: Stage, _: "itertools.count[int]") -> None:
    await stage.one(max_age=0, forbid_stale=True, caller="hostile", deadline=1000)


async def _dry_runs(stage: Stage, _: "itertools.count[int]") -> None:
    await stage.one(dry_run=True, caller="hostile")


async def _leaving(stage: Stage, numbers: "itertools.count[int]") -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(next(numbers) % 7 / 10):
            await stage.one(max_age=0, caller="hostile")


async def _short_deadlines(stage: Stage, numbers: "itertools.count[int]") -> None:
    await stage.one(max_age=0, caller="hostile", deadline=next(numbers) % 5 / 2)


async def _pages_of_one(stage: Stage, _numbers: "itertools.count[int]") -> None:
    token = ""
    for _ in range(50):
        page = await stage.describe(
            regions=[REGIONS[0]], max_age=0, max_results=1, next_token=token, caller="hostile"
        )
        token = page.next_token
        if not token:
            break


async def _streams(stage: Stage, numbers: "itertools.count[int]") -> None:
    request = pb.StreamStoreImageTasksRequest(selector=pb.TaskSelector(regions=[REGIONS[0]]))
    request.max_age.SetInParent()
    call = CallerCall(stage.clock() + 60, "hostile")
    async with aclosing(stage.gateway.service.stream_store_image_tasks(request, call)) as events:
        async for _ in events:
            # Every other one leaves after the first page.
            if next(numbers) % 2:
                break


ATTACKS = (
    *(_unknown_images, _fresh, _fresh_or_nothing, _dry_runs),
    *(_leaving, _short_deadlines, _pages_of_one, _streams),
)


def worst_lag(*attacks: Attack) -> float:
    """How old an answer a polling caller gets at most, while others loop over these."""
    worst: list[float] = []

    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        # Three pages, with something to follow on each, of which one can only be reached by pages.
        ended = ec2.add_ended(450)
        for place in (100, 300, 440):
            ended[place].state, ended[place].percentage = "InProgress", 10
        ec2.add(ended[300].ami_id, age=100, state="Completed")
        numbers = itertools.count()

        async def loop(attack: Attack) -> None:
            while True:
                with suppress(Error):
                    await attack(stage, numbers)
                # So long an answer takes to get to it.
                await asyncio.sleep(0.2)

        await poll(stage, 2)
        async with meanwhile(*(loop(attack) for attack in attacks for _ in range(LOOPS))):
            seen = await poll(stage, MINUTES / 2)
        assert seen.errors == []
        worst.append(max(seen.lags))

    staged(scenario, budget=EC2S)
    return worst[0]


@pytest.mark.parametrize(
    "attack",
    [*((each,) for each in ATTACKS), ATTACKS],
    ids=lambda each: each[0].__name__ if len(each) == 1 else "all",
)
def test_a_hostile_caller_makes_others_answers_at_most_twice_as_old(attack: tuple[Attack, ...]) -> None:
    assert worst_lag(*attack) <= 2 * worst_lag()
