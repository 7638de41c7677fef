"""Describe over several targets, through a real channel."""

import asyncio
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld, aws_error, image
from gateway_stage import (
    NO_AGE,
    Gateway,
    Serve,
    amis,
    eventually,
    near_its_deadline,
    outcomes,
    reason_of,
    seconds,
)
from google.protobuf.timestamp_pb2 import Timestamp
from virtual import EPOCH, VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import timestamp

FRANKFURT, VIRGINIA, OTHER = (
    ("main", "eu-central-1"),
    ("main", "us-east-1"),
    ("other", "eu-central-1"),
)
THROTTLED = aws_error("RequestLimitExceeded", status=503)
BROKEN = aws_error("InternalError", status=500)


def read_times(response: pb.DescribeStoreImageTasksResponse) -> list[Timestamp]:
    return [each.read_time for each in response.target_outcomes]


async def test_the_tasks_of_all_targets_are_merged_newest_first(gateway: Gateway) -> None:
    for age, place in enumerate((VIRGINIA, OTHER, FRANKFURT, VIRGINIA, FRANKFURT)):
        gateway.world.ec2(*place).add(image(age), age=age)
    response = await gateway.describe()
    assert amis(response) == [image(n) for n in range(5)]
    assert not response.HasField("next_token")
    assert outcomes(response) == dict.fromkeys((FRANKFURT, VIRGINIA, OTHER), ("LIVE", ""))


async def test_a_task_is_what_ec2_sent_and_says_where_it_is(gateway: Gateway) -> None:
    ec2 = gateway.world.ec2()
    task = ec2.add(image(1), bucket="archive", percentage=45)
    (found,) = (await gateway.describe(regions=["eu-central-1"])).store_image_task_results
    assert (found.ami_id, found.bucket, found.s3_object_key) == (image(1), "archive", f"{image(1)}.bin")
    assert (found.progress_percentage, found.ec2_store_task_state) == (45, "InProgress")
    assert found.store_task_state == pb.STORE_TASK_STATE_IN_PROGRESS
    assert not found.HasField("store_task_failure_reason")
    assert task.started is not None
    assert found.task_start_time.ToDatetime(task.started.tzinfo) == task.started
    assert (found.account, found.account_id, found.region) == ("main", "123456789012", "eu-central-1")
    assert found.task_id


async def test_a_task_without_a_start_time_comes_last(gateway: Gateway) -> None:
    gateway.world.ec2(*FRANKFURT).add(image(1)).started = None
    gateway.world.ec2(*VIRGINIA).add(image(2), age=86400)
    assert amis(await gateway.describe()) == [image(2), image(1)]


async def test_outcomes_are_in_order_of_account_and_region(gateway: Gateway) -> None:
    gateway.world.ec2(*VIRGINIA).fail(BROKEN)
    response = await gateway.describe()
    assert [(each.target.account, each.target.region) for each in response.target_outcomes] == [
        FRANKFURT,
        VIRGINIA,
        OTHER,
    ]
    assert {each.target.partition for each in response.target_outcomes} == {"aws"}


async def test_accounts_and_regions_choose_among_the_pairs_that_exist(gateway: Gateway) -> None:
    assert list(outcomes(await gateway.describe(accounts=["main"]))) == [FRANKFURT, VIRGINIA]
    assert list(outcomes(await gateway.describe(regions=["eu-central-1"]))) == [FRANKFURT, OTHER]
    assert list(outcomes(await gateway.describe(regions=["us-east-1"]))) == [VIRGINIA]
    both = await gateway.describe(accounts=["other", "main", "main"], regions=["us-east-1", "eu-central-1"])
    assert list(outcomes(both)) == [FRANKFURT, VIRGINIA, OTHER]


async def test_filters_choose_tasks(gateway: Gateway) -> None:
    ec2 = gateway.world.ec2()
    ec2.add(image(1), bucket="archive-1")
    ec2.end(ec2.add(image(2), bucket="archive-2"))
    ec2.end(ec2.add(image(3), bucket="vault"), failed="NoSuchBucket")
    wanted = [
        pb.Filter(name="task-state", values=["Completed", "Failed"]),
        pb.Filter(name="bucket", values=["archive-?"]),
    ]
    assert amis(await gateway.describe(filters=wanted)) == [image(2)]


class TestFreshness:
    """How old an answer is, and how old it may be."""

    async def test_an_answer_young_enough_is_given_again(self, gateway: Gateway, clock: VirtualClock) -> None:
        first = await gateway.describe()
        gateway.world.ec2().add(image(1))
        clock.advance(4)
        second = await gateway.describe()
        assert set(outcomes(second).values()) == {("CACHED", "")}
        assert amis(second) == []
        assert read_times(second) == read_times(first)
        assert len(gateway.world.calls) == 3

    async def test_an_answer_too_old_is_read_anew(self, gateway: Gateway, clock: VirtualClock) -> None:
        first = await gateway.describe()
        gateway.world.ec2().add(image(1))
        clock.advance(5.5)
        second = await gateway.describe()
        assert set(outcomes(second).values()) == {("LIVE", "")}
        assert amis(second) == [image(1)]
        for one, other in zip(read_times(first), read_times(second), strict=True):
            assert other.ToNanoseconds() - one.ToNanoseconds() >= 5.5e9

    async def test_a_callers_max_age_counts(self, gateway: Gateway, clock: VirtualClock) -> None:
        await gateway.describe()
        clock.advance(100)
        assert set(outcomes(await gateway.describe(max_age=seconds(200))).values()) == {("CACHED", "")}
        assert set(outcomes(await gateway.describe(max_age=seconds(99))).values()) == {("LIVE", "")}

    async def test_without_age_the_read_starts_after_the_request(self, gateway: Gateway) -> None:
        await gateway.describe()
        gateway.world.ec2().add(image(1))
        asked = timestamp(gateway.clock())
        response = await gateway.describe(max_age=NO_AGE)
        assert amis(response) == [image(1)]
        assert all(time.ToNanoseconds() >= asked.ToNanoseconds() for time in read_times(response))

    async def test_the_read_time_is_the_start_of_the_read(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        hold = gateway.world.ec2().hang()
        call = asyncio.create_task(gateway.describe(regions=["eu-central-1"], accounts=["main"]))
        await hold.reached()
        clock.advance(3)
        hold.release()
        (time,) = read_times(await call)
        assert EPOCH <= time.ToNanoseconds() / 1e9 < EPOCH + 3

    async def test_a_mixture_says_so_for_each_target(self, gateway: Gateway) -> None:
        await gateway.describe(accounts=["other"])
        assert outcomes(await gateway.describe()) == {
            FRANKFURT: ("LIVE", ""),
            VIRGINIA: ("LIVE", ""),
            OTHER: ("CACHED", ""),
        }


class TestSharing:
    """Callers share what is read."""

    async def test_callers_at_the_same_time_share_one_read(self, gateway: Gateway) -> None:
        holds = [ec2.hang() for ec2 in gateway.world.all()]
        calls = [asyncio.create_task(gateway.describe()) for _ in range(20)]
        for hold in holds:
            await hold.reached()
        await eventually(lambda: gateway.inside == 20)
        for hold in holds:
            hold.release()
        for call in calls:
            await call
        assert [ec2.lists for ec2 in gateway.world.all()] == [1, 1, 1]

    async def test_two_names_of_one_account_share_reads_and_show_a_task_once(
        self, serve: Serve, clock: VirtualClock
    ) -> None:
        world = FakeWorld(clock, {"main": ("eu-central-1",), "alias": ("eu-central-1",)})
        world.accounts["alias"].account_id = world.accounts["main"].account_id
        world.accounts["alias"].by_region = world.accounts["main"].by_region
        world.ec2().add(image(1))
        gateway = await serve(world)
        response = await gateway.describe()
        assert amis(response) == [image(1)]
        assert len(world.ec2().calls) == 1
        for name in ("main", "alias"):
            (task,) = (await gateway.describe(accounts=[name])).store_image_task_results
            assert task.account == name
        assert len(world.ec2().calls) == 1

    async def test_a_task_has_the_same_id_from_every_gateway(self, serve: Serve, world: FakeWorld) -> None:
        world.ec2().add(image(1))
        ids = set()
        for _ in range(2):
            gateway = await serve()
            (task,) = (await gateway.describe()).store_image_task_results
            ids.add(task.task_id)
        assert len(ids) == 1


class TestFailing:
    """Targets that cannot be read."""

    async def test_one_that_was_read_before_shows_its_last_state_as_stale(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        gateway.world.ec2().add(image(1))
        first = await gateway.describe()
        gateway.world.ec2().fail(THROTTLED, times=None)
        clock.advance(60)
        response = await gateway.describe()
        assert outcomes(response)[FRANKFURT] == ("STALE", "AWS_THROTTLED")
        assert outcomes(response)[OTHER] == ("LIVE", "")
        assert amis(response) == [image(1)]
        assert read_times(response)[0] == read_times(first)[0]

    async def test_one_that_was_never_read_has_no_rows_and_no_read_time(self, gateway: Gateway) -> None:
        gateway.world.ec2().fail(THROTTLED, times=None)
        gateway.world.ec2(*OTHER).add(image(1))
        response = await gateway.describe()
        assert outcomes(response)[FRANKFURT] == ("NONE", "AWS_THROTTLED")
        assert not response.target_outcomes[0].HasField("read_time")
        assert amis(response) == [image(1)]

    async def test_who_forbids_stale_rows_gets_none(self, gateway: Gateway, clock: VirtualClock) -> None:
        gateway.world.ec2().add(image(1))
        await gateway.describe()
        gateway.world.ec2().fail(THROTTLED, times=None)
        clock.advance(60)
        response = await gateway.describe(forbid_stale=True)
        assert outcomes(response)[FRANKFURT] == ("NONE", "AWS_THROTTLED")
        assert amis(response) == []

    async def test_the_error_of_the_only_target_is_the_calls(self, gateway: Gateway) -> None:
        gateway.world.ec2().fail(THROTTLED, times=None)
        refused = await gateway.refused(accounts=["main"], regions=["eu-central-1"])
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "AWS_THROTTLED")
        assert refused.metadata == {
            "account": "main",
            "region": "eu-central-1",
            "awsErrorCode": "RequestLimitExceeded",
            "awsRequestId": "f1e2d3c4",
        }
        assert refused.details(pb.TargetFailures) == []

    async def test_the_only_targets_last_state_is_better_than_its_error(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        request: dict[str, Any] = {"accounts": ["other"]}
        await gateway.describe(**request)
        gateway.world.ec2(*OTHER).fail(BROKEN, times=None)
        clock.advance(60)
        assert outcomes(await gateway.describe(**request)) == {OTHER: ("STALE", "AWS_INTERNAL_ERROR")}
        refused = await gateway.refused(forbid_stale=True, **request)
        assert refused.reason == "AWS_INTERNAL_ERROR"

    async def test_if_all_failed_alike_the_call_fails_alike(self, gateway: Gateway) -> None:
        for ec2 in gateway.world.all():
            ec2.fail(THROTTLED, times=None)
        refused = await gateway.refused()
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "AWS_THROTTLED")
        (failures,) = refused.details(pb.TargetFailures)
        assert [(each.account, each.region) for each in failures.failures] == [FRANKFURT, VIRGINIA, OTHER]
        assert {(each.code, each.reason) for each in failures.failures} == {(8, "AWS_THROTTLED")}
        assert failures.omitted_count == 0

    async def test_if_all_failed_with_one_code_for_different_reasons_the_code_is_kept(
        self, gateway: Gateway
    ) -> None:
        codes = ("Blocked", "PendingVerification", "OptInRequired")
        for ec2, code in zip(gateway.world.all(), codes, strict=True):
            ec2.fail(aws_error(code), times=None)
        refused = await gateway.refused()
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "ALL_TARGETS_FAILED"

    async def test_if_all_failed_differently_the_call_is_unavailable(self, gateway: Gateway) -> None:
        for ec2, fault in zip(gateway.world.all(), (THROTTLED, BROKEN, THROTTLED), strict=True):
            ec2.fail(fault, times=None)
        refused = await gateway.refused()
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "ALL_TARGETS_FAILED")

    async def test_the_failures_of_680_targets_fit_below_4_kib(
        self, serve: Serve, clock: VirtualClock
    ) -> None:
        regions = [f"ap-southwest-{number}" for number in range(34)]
        world = FakeWorld(clock, {f"an-account-with-a-long-name-{n:02}": regions for n in range(20)})
        for ec2 in world.all():
            ec2.fail(THROTTLED, times=None)
        gateway = await serve(world)
        refused = await gateway.refused()
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        (failures,) = refused.details(pb.TargetFailures)
        assert failures.failures
        assert failures.omitted_count + len(failures.failures) == 680

    async def test_a_long_text_of_ec2_does_not_push_the_details_out(self, gateway: Gateway) -> None:
        for ec2 in gateway.world.all():
            ec2.fail(aws_error("Unheard.Of", "ü" * 5000), times=None)
        requests: list[dict[str, Any]] = [{"accounts": ["other"]}, {}]
        for request in requests:
            refused = await gateway.refused(**request)
            assert refused.reason == "AWS_UNCLASSIFIED"
            assert len(refused.text) < 1000

    async def test_a_hanging_target_does_not_cost_the_others_their_answer(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        hold = gateway.world.ec2(*VIRGINIA).hang()
        gateway.world.ec2(*FRANKFURT).add(image(1))
        response = await near_its_deadline(gateway.describe(), hold, clock)
        assert outcomes(response) == {
            FRANKFURT: ("LIVE", ""),
            VIRGINIA: ("NONE", "DEADLINE"),
            OTHER: ("LIVE", ""),
        }
        assert amis(response) == [image(1)]

    async def test_a_hanging_target_shows_its_last_state_when_time_is_up(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        gateway.world.ec2(*VIRGINIA).add(image(1))
        await gateway.describe()
        hold = gateway.world.ec2(*VIRGINIA).hang()
        response = await near_its_deadline(gateway.describe(max_age=NO_AGE), hold, clock)
        assert outcomes(response)[VIRGINIA] == ("STALE", "DEADLINE")
        assert amis(response) == [image(1)]

    async def test_a_call_to_ec2_that_hangs_is_ended(self, serve: Serve, clock: VirtualClock) -> None:
        gateway = await serve(page_timeout=20)
        hold = gateway.world.ec2().hang()
        call = asyncio.create_task(gateway.describe(None))
        await hold.reached()
        clock.advance(21)
        assert outcomes(await call)[FRANKFURT] == ("NONE", "AWS_TIMEOUT")
        await eventually(lambda: hold.waiting == 0)

    async def test_an_error_is_not_kept_as_an_answer(self, gateway: Gateway) -> None:
        gateway.world.ec2().fail(BROKEN)
        assert outcomes(await gateway.describe())[FRANKFURT] == ("NONE", "AWS_INTERNAL_ERROR")
        assert outcomes(await gateway.describe())[FRANKFURT] == ("LIVE", "")

    async def test_one_failed_account_costs_the_others_nothing(self, gateway: Gateway) -> None:
        gateway.world.accounts["other"].discovery_fault = aws_error("ExpiredToken").at("other")
        gateway.world.ec2().add(image(1))
        response = await gateway.describe()
        assert amis(response) == [image(1)]
        assert outcomes(response)["other", ""] == ("NONE", "AWS_CREDENTIALS_EXPIRED")
        assert response.target_outcomes[-1].target == pb.Target(account="other")


class TestPages:
    """Only what needs the wire; the rest is in test_paging."""

    async def test_a_page_without_max_results_ends_at_a_thousand_tasks(self, gateway: Gateway) -> None:
        gateway.world.ec2().add_ended(1200)
        first = await gateway.describe()
        assert len(first.store_image_task_results) == 1000
        second = await gateway.describe(next_token=first.next_token)
        assert len(second.store_image_task_results) == 200
        assert not second.HasField("next_token")
        assert (
            len(
                {task.task_id for task in (*first.store_image_task_results, *second.store_image_task_results)}
            )
            == 1200
        )

    async def test_a_page_without_max_results_ends_at_2_mib(self, gateway: Gateway) -> None:
        for number in range(300):
            gateway.world.ec2().add(image(number), state="Failed", reason="x" * 10_000)
        page = await gateway.describe()
        assert 1.9 * 2**20 < page.ByteSize() < 2.1 * 2**20
        assert page.next_token

    async def test_later_pages_ask_ec2_nothing(self, gateway: Gateway, clock: VirtualClock) -> None:
        gateway.world.ec2().add_ended(10)
        page = await gateway.describe(max_results=4)
        asked = len(gateway.world.calls)
        seen = amis(page)
        while page.next_token:
            clock.advance(30)
            page = await gateway.describe(max_results=4, next_token=page.next_token)
            seen += amis(page)
        assert (len(seen), len(set(seen))) == (10, 10)
        assert len(gateway.world.calls) == asked

    async def test_a_target_missing_from_one_page_stays_out(self, gateway: Gateway) -> None:
        gateway.world.ec2().fail(BROKEN)
        for ec2 in gateway.world.all():
            ec2.add_ended(3)
        page = await gateway.describe(max_results=2)
        assert outcomes(page)[FRANKFURT] == ("NONE", "AWS_INTERNAL_ERROR")
        page = await gateway.describe(max_results=200, next_token=page.next_token)
        assert outcomes(page)[FRANKFURT] == ("NONE", "LEFT_OUT")
        assert page.target_outcomes[0].status.code == grpc.StatusCode.ABORTED.value[0]
        assert len(page.store_image_task_results) == 4
        assert {task.region + task.account for task in page.store_image_task_results} == {
            "us-east-1main",
            "eu-central-1other",
        }


class TestKeptAnswers:
    """Serialised answers are kept while nothing behind them moved."""

    async def test_the_same_question_gives_the_same_answer(self, gateway: Gateway) -> None:
        gateway.world.ec2().add(image(1))
        await gateway.describe()
        first, second = await gateway.describe(), await gateway.describe()
        assert first == second
        assert amis(first) == [image(1)]

    async def test_other_names_of_the_same_targets_are_another_question(self, gateway: Gateway) -> None:
        await gateway.describe()
        one, other = await gateway.describe(accounts=["main"]), await gateway.describe(accounts=["other"])
        assert set(outcomes(one)).isdisjoint(outcomes(other))

    async def test_forbidding_stale_rows_is_seen_where_they_are_kept(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        gateway.world.ec2().add(image(1))
        await gateway.describe()
        for ec2 in gateway.world.all():
            ec2.fail(BROKEN, times=None)
        clock.advance(60)
        stale = await gateway.describe()
        assert {reason_of(each) for each in stale.target_outcomes} == {"AWS_INTERNAL_ERROR"}
        await gateway.refused(forbid_stale=True)


@pytest.mark.parametrize("pages", [1, 3])
async def test_a_page_token_that_ec2_forgot_restarts_the_listing_once(
    serve: Serve, clock: VirtualClock, pages: int
) -> None:
    world = FakeWorld(clock, page_size=2)
    ec2 = world.ec2()
    ec2.add_ended(2 * pages)
    forgotten: list[Any] = []

    def forget_once(call: Any) -> None:
        if call.token and not forgotten:
            forgotten.append(call)
            ec2.expire_tokens()

    ec2.between = forget_once
    gateway = await serve(world)
    response = await gateway.describe()
    assert outcomes(response) == {FRANKFURT: ("LIVE", "")}
    assert len(amis(response)) == 2 * pages
    assert ec2.lists == 1 + len(forgotten)


async def test_a_page_token_that_ec2_forgets_again_and_again_is_unavailable(
    serve: Serve, clock: VirtualClock
) -> None:
    world = FakeWorld(clock, page_size=2)
    world.ec2().add_ended(4)
    world.ec2().between = lambda call: world.ec2().expire_tokens() if call.token else None
    gateway = await serve(world)
    refused = await gateway.refused()
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "AWS_PAGE_EXPIRED")
    assert world.ec2().lists == 2
