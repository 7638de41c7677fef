"""Finding out accounts and Regions."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from fake_ec2 import FakeAccount, Hold, aws_error
from virtual import VirtualClock, run, settle

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import Error, NotFound
from imagetasks_server.targets import RETRY_AFTER, Resolution, Targets

EXPIRED = aws_error("ExpiredToken").at("main")
HOUR = 3600.0


class Stage:
    """Two accounts on virtual time."""

    def __init__(
        self,
        clock: VirtualClock,
        configured: dict[str, Sequence[str]] | None = None,
        excluded: dict[str, Sequence[str]] | None = None,
    ) -> None:
        self.clock = clock
        self.main = FakeAccount("main", "123456789012", ("eu-central-1", "us-east-1"))
        self.other = FakeAccount("other", "210987654321", ("eu-central-1",))
        self.targets = Targets(
            {"main": self.main, "other": self.other},
            configured or {},
            clock,
            expiry=HOUR,
            timeout=10,
            excluded=excluded or {},
        )

    async def resolve(self, *accounts: str, regions: Sequence[str] = ()) -> Resolution:
        return await self.targets.resolve(accounts, regions)


def staged(scenario: Callable[[Stage], Awaitable[None]], **how: Any) -> None:
    async def with_stage(clock: VirtualClock) -> None:
        stage = Stage(clock, **how)
        await scenario(stage)
        await stage.targets.close()

    run(with_stage)


def pairs(resolution: Resolution) -> list[tuple[str, str]]:
    return [(target.account, target.region) for target in resolution.targets]


MAIN = [("main", "eu-central-1"), ("main", "us-east-1")]
OTHER = [("other", "eu-central-1")]


def test_empty_means_all_in_order() -> None:
    async def scenario(stage: Stage) -> None:
        resolution = await stage.resolve()
        assert pairs(resolution) == MAIN + OTHER
        assert resolution.failed == ()
        assert resolution.targets[0].key == ("aws", "123456789012", "eu-central-1")

    staged(scenario)


def test_names_choose_among_existing_pairs() -> None:
    async def scenario(stage: Stage) -> None:
        assert pairs(await stage.resolve("other", "main", "other")) == MAIN + OTHER
        assert pairs(await stage.resolve("main", regions=["us-east-1"])) == [MAIN[1]]
        assert pairs(await stage.resolve(regions=["us-east-1", "eu-central-1"])) == MAIN + OTHER

    staged(scenario)


def test_what_does_not_exist_is_not_found() -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(NotFound) as caught:
            await stage.resolve("main", "nobody")
        assert (caught.value.reason, caught.value.account) == ("UNKNOWN_ACCOUNT", "nobody")
        with pytest.raises(NotFound) as caught:
            await stage.resolve("other", regions=["us-east-1"])
        assert (caught.value.reason, caught.value.region) == ("UNKNOWN_REGION", "us-east-1")

    staged(scenario)


def test_an_unknown_account_costs_no_question() -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(NotFound):
            await stage.resolve("main", "nobody")
        assert stage.main.asked == []

    staged(scenario)


def test_what_is_known_is_not_asked_again_until_it_expires() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.resolve()
        await asyncio.sleep(HOUR - 1)
        await stage.resolve()
        assert stage.main.asked == ["identity", "enabled_regions"]

    staged(scenario)


def test_an_expired_list_is_renewed_while_the_known_one_answers() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.resolve()
        stage.main.regions = ("eu-central-1",)
        stage.main.hold = Hold()
        await asyncio.sleep(HOUR + 1)
        assert pairs(await stage.resolve("main")) == MAIN
        await stage.main.hold.reached()
        stage.main.hold.release()
        await settle()
        assert pairs(await stage.resolve("main")) == MAIN[:1]

    staged(scenario)


def test_a_failed_renewal_keeps_the_last_known_list_and_says_so() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.resolve()
        assert stage.targets.source("main") == pb.REGION_SOURCE_DISCOVERED
        stage.main.regions_fault = EXPIRED
        await asyncio.sleep(HOUR + 1)
        await stage.resolve()
        await settle()
        resolution = await stage.resolve("main")
        assert pairs(resolution) == MAIN
        assert resolution.failed == ()
        assert stage.targets.source("main") == pb.REGION_SOURCE_LAST_KNOWN
        stage.main.regions_fault = None
        await asyncio.sleep(RETRY_AFTER + 1)
        await stage.resolve()
        await settle()
        assert stage.targets.source("main") == pb.REGION_SOURCE_DISCOVERED

    staged(scenario)


def test_configured_regions_need_no_discovery() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.regions_fault = EXPIRED
        assert pairs(await stage.resolve("main")) == [("main", "eu-north-1"), ("main", "us-west-2")]
        assert stage.main.asked == ["identity"]
        assert stage.targets.source("main") == pb.REGION_SOURCE_CONFIGURED

    staged(scenario, configured={"main": ("us-west-2", "eu-north-1")})


def test_excluded_regions_are_no_targets() -> None:
    async def scenario(stage: Stage) -> None:
        assert pairs(await stage.resolve()) == MAIN[:1] + OTHER
        with pytest.raises(NotFound):
            await stage.resolve(regions=["us-east-1"])

    staged(scenario, excluded={"main": ("us-east-1",)})


@pytest.mark.parametrize("fault", ["discovery_fault", "regions_fault"])
def test_an_account_that_was_never_known_is_an_error_beside_the_others(fault: str) -> None:
    async def scenario(stage: Stage) -> None:
        setattr(stage.main, fault, EXPIRED)
        resolution = await stage.resolve()
        assert pairs(resolution) == OTHER
        ((target, error),) = resolution.failed
        assert (target.account, target.region) == ("main", "")
        assert (error.reason, error.account) == ("AWS_CREDENTIALS_EXPIRED", "main")
        assert stage.targets.source("main") == pb.REGION_SOURCE_UNSPECIFIED

    staged(scenario)


def test_a_failed_discovery_is_not_taken_for_an_answer() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.discovery_fault = EXPIRED
        await stage.resolve()
        stage.main.discovery_fault = None
        await asyncio.sleep(RETRY_AFTER + 1)
        assert pairs(await stage.resolve("main")) == MAIN

    staged(scenario)


def test_a_dead_sts_is_not_asked_by_every_call() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.discovery_fault = EXPIRED
        for _ in range(20):
            await stage.resolve("main")
        assert stage.main.asked == ["identity"]

    staged(scenario)


def test_while_an_account_is_unknown_any_region_may_be_one_of_its() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.discovery_fault = EXPIRED
        resolution = await stage.resolve(regions=["us-east-1"])
        assert pairs(resolution) == []
        assert len(resolution.failed) == 1

    staged(scenario)


def test_callers_at_the_same_time_share_one_discovery() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.hold = Hold()
        calls = [asyncio.create_task(stage.resolve()) for _ in range(10)]
        await stage.main.hold.reached()
        await settle()
        stage.main.hold.release()
        assert {tuple(pairs(await call)) for call in calls} == {tuple(MAIN + OTHER)}
        assert stage.main.asked == ["identity", "enabled_regions"]

    staged(scenario)


def test_one_who_leaves_does_not_take_the_discovery_along() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.hold = Hold()
        first, second = (asyncio.create_task(stage.resolve("main")) for _ in range(2))
        await stage.main.hold.reached()
        first.cancel()
        await settle()
        stage.main.hold.release()
        assert pairs(await second) == MAIN
        assert stage.main.asked == ["identity", "enabled_regions"]

    staged(scenario)


def test_nobody_waits_longer_than_the_time_limit() -> None:
    async def scenario(stage: Stage) -> None:
        began = stage.clock()
        stage.main.hold = Hold()
        resolution = await stage.resolve()
        assert stage.clock() - began == pytest.approx(10)
        assert pairs(resolution) == OTHER
        ((_, error),) = resolution.failed
        assert error.reason == "AWS_TIMEOUT"
        stage.main.hold.release()
        await settle()
        assert pairs(await stage.resolve("main")) == MAIN

    staged(scenario)


def test_a_fault_inside_is_not_told() -> None:
    async def scenario(stage: Stage) -> None:
        stage.main.discovery_fault = RuntimeError("the password is swordfish")
        ((_, error),) = (await stage.resolve("main")).failed
        assert error.reason == "INTERNAL"
        assert "swordfish" not in error.message

    staged(scenario)


def test_an_account_that_changes_hands_gets_another_view() -> None:
    async def scenario(stage: Stage) -> None:
        (before,) = (await stage.resolve("other")).targets
        stage.other.account_id = "333344445555"
        await asyncio.sleep(HOUR + 1)
        await stage.resolve()
        await settle()
        (after,) = (await stage.resolve("other")).targets
        assert before.key != after.key

    staged(scenario)


def test_accounts_that_come_and_go_keep_what_is_known_of_the_others() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.resolve()
        third = FakeAccount("third", "777788889999", ("us-east-1",))
        stage.targets.replace({"main": stage.main, "third": third}, {}, {})
        assert pairs(await stage.resolve()) == [*MAIN, ("third", "us-east-1")]
        assert stage.main.asked == ["identity", "enabled_regions"]
        with pytest.raises(NotFound):
            await stage.resolve("other")

    staged(scenario)


def test_while_an_organization_is_not_listed_any_account_may_be_one_of_its() -> None:
    async def scenario(stage: Stage) -> None:
        stage.targets.replace({"main": stage.main}, {}, {}, {"org": EXPIRED})
        resolution = await stage.resolve()
        assert pairs(resolution) == MAIN
        ((target, error),) = resolution.failed
        assert (target.account, error.reason) == ("org", "AWS_CREDENTIALS_EXPIRED")
        with pytest.raises(Error) as caught:
            await stage.resolve("perhaps")
        assert caught.value.reason == "AWS_CREDENTIALS_EXPIRED"

    staged(scenario)
