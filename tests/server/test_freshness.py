"""How old answers are, what stands in while EC2 cannot be asked, and who is told to come back when."""

import asyncio

import pytest
from fake_ec2 import aws_error
from virtual_stage import REGIONS, Stage, staged

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import Error
from imagetasks_server.service import Call
from imagetasks_server.tracked import FORGET_EVERY

TROUBLE = aws_error("InternalError", status=500)


def test_the_last_good_state_stands_in_and_says_since_when() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        ec2.add()
        first = await stage.one()
        ec2.fail(TROUBLE, times=None)
        stage.clock.advance(100)
        stale = await stage.one()
        assert stale.source == pb.SOURCE_STALE
        assert stale.read_time == first.read_time
        assert stale.status.message
        assert (await stage.error(forbid_stale=True)).reason == "AWS_INTERNAL_ERROR"

    staged(scenario)


def test_a_state_older_than_stale_for_does_not_stand_in() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.one()
        stage.world.ec2().fail(TROUBLE, times=None)
        stage.clock.advance(200)
        assert (await stage.one()).source == pb.SOURCE_STALE
        stage.clock.advance(101)
        assert (await stage.error()).reason == "AWS_INTERNAL_ERROR"

    staged(scenario, stale_for=300.0)


@pytest.mark.parametrize(
    "denial", ["UnauthorizedOperation", "OptInRequired", "InvalidClientTokenId", "Blocked"]
)
def test_a_refusal_is_remembered_and_costs_no_calls(denial: str) -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        ec2.fail(aws_error(denial, status=403), times=None)
        first = await stage.error(max_age=0)
        for _ in range(20):
            stage.clock.advance(1)
            assert (await stage.error(max_age=0)).reason == first.reason
        assert len(ec2.calls) == 1
        ec2.recover()
        stage.clock.advance(15)
        assert (await stage.one(max_age=0)).source == pb.SOURCE_LIVE

    staged(scenario)


def test_a_passing_fault_is_not_remembered() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().fail(TROUBLE)
        await stage.error()
        assert (await stage.one()).source == pb.SOURCE_LIVE

    staged(scenario)


def test_who_cannot_be_served_in_time_is_told_at_once_when_to_come_back() -> None:
    async def scenario(stage: Stage) -> None:
        began = stage.clock()
        error = await stage.error(deadline=5)
        assert (error.reason, stage.clock()) == ("BUDGET_EXHAUSTED", began)
        assert error.retry_after == pytest.approx(10.0)
        assert stage.world.calls == []
        # The wait is true: not a moment before, and then at once.
        stage.clock.advance(9.9)
        assert (await stage.error(deadline=0.05)).reason == "BUDGET_EXHAUSTED"
        stage.clock.advance(0.1)
        assert (await stage.one(deadline=0.05)).source == pb.SOURCE_LIVE

    staged(scenario, budget={"capacity": 10, "refill": 0.125, "reserve": 0.2, "initial": 0})


def test_who_has_the_time_waits_for_the_budget() -> None:
    async def scenario(stage: Stage) -> None:
        began = stage.clock()
        assert (await stage.one(deadline=60)).source == pb.SOURCE_LIVE
        assert stage.clock() - began == pytest.approx(10.0)

    staged(scenario, budget={"capacity": 10, "refill": 0.125, "reserve": 0.2, "initial": 0})


def test_without_budget_the_last_good_state_stands_in() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.one()
        stage.clock.advance(6)
        stale = await stage.one(deadline=1)
        assert stale.source == pb.SOURCE_STALE
        assert stale.status.code == 8

    staged(scenario, budget={"capacity": 10, "refill": 0.001, "initial": 1})


def test_callers_at_max_age_zero_read_no_more_often_than_the_budget_sustains() -> None:
    async def scenario(stage: Stage) -> None:
        began = stage.clock()
        for _ in range(50):
            stage.clock.advance(0.001)
            outcome = await stage.one(max_age=0)
            assert outcome.source == pb.SOURCE_LIVE
        seconds = stage.clock() - began
        assert len(stage.world.ec2().calls) == 50
        assert seconds == pytest.approx((50 - 5) / 0.4, rel=0.01)

    staged(scenario, budget={"capacity": 50, "refill": 0.5, "reserve": 0.2, "initial": 5})


def test_one_callers_unknown_images_leave_the_others_their_reads_and_their_turn() -> None:
    async def scenario(stage: Stage) -> None:
        async def hostile() -> None:
            for number in range(10_000):
                ids = [f"ami-{number * 20 + n:08x}" for n in range(20)]
                with pytest.raises(Error):
                    await stage.one(image_ids=ids, caller="hostile", deadline=1000)

        looping = [asyncio.create_task(hostile()) for _ in range(10)]
        worst = 0.0
        for _ in range(60):
            stage.clock.advance(5)
            outcome = await stage.one(caller="good")
            worst = max(worst, stage.clock() - outcome.read_time.ToMicroseconds() / 1e6)
        assert worst <= 2 * 5.0
        began = stage.clock()
        error = await stage.error(image_ids=["ami-ffffffff"], caller="good", deadline=1000)
        assert error.reason == "IMAGE_NOT_FOUND"
        # Two private tokens at most: one in the making, and the next takes ours along.
        assert stage.clock() - began <= 2 / 0.1 + 1
        for each in looping:
            each.cancel()
        await asyncio.wait(looping)

    staged(scenario, budget={"capacity": 50, "refill": 0.5, "reserve": 0.2, "initial": 5})


def test_an_unused_state_is_forgotten_and_its_budget_is_not() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        await stage.describe()
        registry = stage.gateway.registry
        first, second = list(registry)
        budgets = {first.budget, second.budget}
        for _ in range(8):
            stage.clock.advance(FORGET_EVERY + 1)
            await stage.describe(regions=[REGIONS[1]])
        assert list(registry) == [second]
        outcome = await stage.one()
        assert outcome.source == pb.SOURCE_LIVE
        assert {tracked.budget for tracked in registry} == budgets

    staged(scenario, keep_unused_for=300.0)


def test_above_the_number_of_tasks_kept_the_longest_unused_goes_first() -> None:
    async def scenario(stage: Stage) -> None:
        for region in REGIONS:
            stage.world.ec2(region=region).add_ended(30)
            await stage.describe(regions=[region])
        stage.clock.advance(FORGET_EVERY + 1)
        await stage.describe(regions=[REGIONS[1]])
        (kept,) = stage.gateway.registry
        assert len(kept.view) == 30

    staged(scenario, keep_tasks=40)


def test_listing_targets_keeps_none_alive_and_makes_none() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.describe(regions=[REGIONS[0]])
        registry = stage.gateway.registry
        assert len(list(registry)) == 1
        for _ in range(8):
            stage.clock.advance(FORGET_EVERY + 1)
            call = Call(stage.clock() + 60)
            listed = await stage.gateway.service.list_targets(pb.ListTargetsRequest(), call)
            assert len(listed.targets) == 2
            assert all(target.budget.capacity for target in listed.targets)
        await stage.describe(regions=[REGIONS[1]])
        stage.clock.advance(FORGET_EVERY + 1)
        await stage.describe(regions=[REGIONS[1]])
        (left,) = registry
        assert left is registry.peek(stage.world.ec2(region=REGIONS[1]).target)

    staged(scenario, keep_unused_for=300.0)
