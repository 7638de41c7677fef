"""What EC2 is asked for one caller: whether images exist, and whether the gateway may."""

import asyncio
from typing import Any

import grpc
import pytest
from fake_ec2 import Call, FakeEc2, FakeWorld, aws_error, image
from gateway_stage import (
    NO_AGE,
    Failure,
    Gateway,
    Serve,
    amis,
    eventually,
    failure,
    near_its_deadline,
    outcomes,
    seconds,
)
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.upstream import Query

ONE: dict[str, Any] = {"accounts": ["main"], "regions": ["eu-central-1"]}


def id_calls(ec2: FakeEc2) -> list[list[str]]:
    """The ids of each call by id."""
    return [sorted(call.query.image_ids) for call in ec2.calls if call.query.image_ids]


def dry_runs(ec2: FakeEc2) -> int:
    return sum(call.query.dry_run for call in ec2.calls)


@pytest.fixture
def ec2(world: FakeWorld) -> FakeEc2:
    return world.ec2()


class TestImages:
    """Image ids in a describe."""

    async def test_only_the_newest_task_of_each_image_is_listed(self, gateway: Gateway, ec2: FakeEc2) -> None:
        for age, number in enumerate((1, 2, 1, 3, 2)):
            ec2.add(image(number), age=age, bucket=f"bucket-{age}")
        response = await gateway.describe(image_ids=[image(2), image(1)], **ONE)
        assert [(task.ami_id, task.bucket) for task in response.store_image_task_results] == [
            (image(1), "bucket-0"),
            (image(2), "bucket-1"),
        ]
        assert not response.HasField("next_token")

    async def test_filters_are_ignored_with_image_ids(self, gateway: Gateway, ec2: FakeEc2) -> None:
        ec2.add(image(1))
        filters = [pb.Filter(name="bucket", values=["another"])]
        assert amis(await gateway.describe(image_ids=[image(1)], filters=filters, **ONE)) == [image(1)]

    async def test_an_id_given_twice_counts_once(self, gateway: Gateway, ec2: FakeEc2) -> None:
        ec2.add(image(1))
        assert amis(await gateway.describe(image_ids=[image(1)] * 20, **ONE)) == [image(1)]

    async def test_an_image_of_which_a_task_is_known_costs_no_question(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        ec2.add(image(1))
        await gateway.describe(image_ids=[image(1)], **ONE)
        assert ec2.calls == [Call(Query())]

    async def test_an_image_without_a_task_is_no_error_and_no_row(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        ec2.images.add(image(7))
        assert amis(await gateway.describe(image_ids=[image(7)], **ONE)) == []
        assert id_calls(ec2) == [[image(7)]]

    async def test_an_unknown_image_is_not_found_in_the_one_target(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        ec2.add(image(1))
        refused = await gateway.refused(image_ids=[image(9), image(1), image(8)], **ONE)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
        assert refused.text == f"The image ids '[{image(8)}, {image(9)}]' do not exist"
        assert refused.metadata["account"] == "main"
        assert refused.metadata["region"] == "eu-central-1"
        assert refused.metadata["awsErrorCode"] == "InvalidAMIID.NotFound"

    async def test_over_several_targets_an_unknown_image_is_no_error(
        self, gateway: Gateway, world: FakeWorld
    ) -> None:
        world.ec2("other").add(image(1))
        response = await gateway.describe(image_ids=[image(1), image(9)])
        assert amis(response) == [image(1)]
        assert {source for source, _ in outcomes(response).values()} == {"LIVE"}
        assert all(id_calls(ec2) == [] for ec2 in world.all())

    async def test_each_target_shows_its_own_newest_task(self, gateway: Gateway, world: FakeWorld) -> None:
        for ec2 in world.all():
            ec2.add(image(1), age=10)
            ec2.add(image(1), age=5)
        response = await gateway.describe(image_ids=[image(1)])
        assert len(amis(response)) == 3

    async def test_concurrent_lookups_become_one_call(self, gateway: Gateway, ec2: FakeEc2) -> None:
        await gateway.describe(**ONE)
        hold = ec2.hang()
        first = asyncio.create_task(gateway.refused(image_ids=[image(100)], **ONE))
        await hold.reached()
        # While the first is on its way, others come with ids of their own, and the same ones.
        others = [
            asyncio.create_task(gateway.refused(image_ids=[image(n), image(n + 1)], **ONE)) for n in range(9)
        ]
        await eventually(lambda: gateway.inside == 10)
        hold.release()
        for refused in await asyncio.gather(first, *others):
            assert refused.reason == "IMAGE_NOT_FOUND"
        assert id_calls(ec2) == [[image(100)], [image(n) for n in range(10)]]

    async def test_at_most_20_ids_go_into_a_call(self, gateway: Gateway, ec2: FakeEc2) -> None:
        await gateway.describe(**ONE)
        ec2.images.update(image(n) for n in range(60))
        hold = ec2.hang()
        calls = [
            asyncio.create_task(gateway.describe(image_ids=[image(20 * k + n) for n in range(20)], **ONE))
            for k in range(3)
        ]
        await eventually(lambda: gateway.inside == 3)
        hold.release()
        await asyncio.gather(*calls)
        assert sorted(map(len, id_calls(ec2))) == [20, 20, 20]

    async def test_an_unknown_image_does_not_fail_others_in_the_same_call(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        await gateway.describe(**ONE)
        ec2.images.update({image(1), image(2)})
        hold = ec2.hang()
        blocker = asyncio.create_task(gateway.describe(image_ids=[image(1)], **ONE))
        await hold.reached()
        good = asyncio.create_task(gateway.describe(image_ids=[image(2)], **ONE))
        bad = asyncio.create_task(gateway.refused(image_ids=[image(9)], **ONE))
        await eventually(lambda: gateway.inside == 3)
        hold.release()
        await asyncio.gather(blocker, good)
        assert image(9) in (await bad).text

    async def test_what_ec2_said_is_remembered_for_60_seconds(
        self, gateway: Gateway, ec2: FakeEc2, clock: VirtualClock
    ) -> None:
        for wait, calls in ((0, 1), (59, 1), (2, 2)):
            clock.advance(wait)
            refused = await gateway.refused(image_ids=[image(9)], **ONE)
            assert refused.reason == "IMAGE_NOT_FOUND"
            assert len(id_calls(ec2)) == calls

    async def test_a_task_that_started_meanwhile_is_seen(
        self, gateway: Gateway, ec2: FakeEc2, clock: VirtualClock
    ) -> None:
        await gateway.refused(image_ids=[image(9)], **ONE)
        ec2.add(image(9))
        clock.advance(6)
        assert amis(await gateway.describe(image_ids=[image(9)], **ONE)) == [image(9)]

    async def test_an_error_is_not_remembered(self, gateway: Gateway, ec2: FakeEc2) -> None:
        await gateway.describe(**ONE)
        ec2.images.add(image(1))
        ec2.fail(aws_error("InternalError", status=500))
        refused = await gateway.refused(image_ids=[image(1)], **ONE)
        assert refused.reason == "AWS_INTERNAL_ERROR"
        await gateway.describe(image_ids=[image(1)], **ONE)

    async def test_a_lookup_that_hangs_ends_with_the_callers_deadline(
        self, gateway: Gateway, ec2: FakeEc2, clock: VirtualClock
    ) -> None:
        await gateway.describe(**ONE)
        hold = ec2.hang()
        refused = await near_its_deadline(gateway.refused(image_ids=[image(9)], **ONE), hold, clock)
        assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: hold.waiting == 0)

    async def test_the_last_to_leave_ends_the_lookup_and_not_before(
        self, gateway: Gateway, ec2: FakeEc2
    ) -> None:
        await gateway.describe(**ONE)
        hold = ec2.hang()
        calls = [
            gateway.stub.DescribeStoreImageTasks(
                pb.DescribeStoreImageTasksRequest(image_ids=[image(9)], **ONE)
            )
            for _ in range(3)
        ]
        await hold.reached()
        await eventually(lambda: gateway.inside == 3)
        for call in calls[:2]:
            call.cancel()
        await eventually(lambda: gateway.inside == 1)
        assert hold.waiting == 1
        calls[2].cancel()
        await eventually(lambda: hold.waiting == 0)
        assert ec2.cancelled == 1


class TestDryRun:
    """Asking for permission."""

    async def test_with_one_target_the_answer_is_ec2s_error(self, gateway: Gateway, ec2: FakeEc2) -> None:
        refused = await gateway.refused(dry_run=True, **ONE)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DRY_RUN_OPERATION")
        assert refused.metadata["awsErrorCode"] == "DryRunOperation"
        assert refused.metadata["account"] == "main"
        assert ec2.calls == [Call(Query(dry_run=True))]

    async def test_with_one_target_a_denial_is_ec2s_error(self, gateway: Gateway, ec2: FakeEc2) -> None:
        ec2.denied = True
        refused = await gateway.refused(dry_run=True, **ONE)
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        assert refused.reason == "AWS_UNAUTHORIZED_OPERATION"
        assert "Encoded" not in refused.text
        assert "DescribeStoreImageTasks" in refused.text

    async def test_with_several_the_outcomes_tell(self, gateway: Gateway, world: FakeWorld) -> None:
        world.ec2("main", "us-east-1").denied = True
        world.ec2("other").fail(aws_error("InternalError", status=500))
        response = await gateway.describe(dry_run=True)
        assert {place: reason for place, (_, reason) in outcomes(response).items()} == {
            ("main", "eu-central-1"): "",
            ("main", "us-east-1"): "AWS_UNAUTHORIZED_OPERATION",
            ("other", "eu-central-1"): "AWS_INTERNAL_ERROR",
        }
        assert amis(response) == []

    async def test_with_several_that_all_failed_the_call_fails(
        self, gateway: Gateway, world: FakeWorld
    ) -> None:
        for each in world.all():
            each.denied = True
        refused = await gateway.refused(dry_run=True)
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        assert refused.details(pb.TargetFailures)

    @pytest.mark.parametrize("denied", [False, True])
    async def test_the_answer_is_remembered_for_60_seconds(
        self,
        gateway: Gateway,
        ec2: FakeEc2,
        clock: VirtualClock,
        denied: bool,
    ) -> None:
        ec2.denied = denied
        for wait, asked in ((0, 1), (59, 1), (2, 2)):
            clock.advance(wait)
            await gateway.refused(dry_run=True, **ONE)
            assert dry_runs(ec2) == asked

    async def test_a_fault_is_not_remembered(self, gateway: Gateway, ec2: FakeEc2) -> None:
        ec2.fail(aws_error("InternalError", status=500))
        assert (await gateway.refused(dry_run=True, **ONE)).reason == "AWS_INTERNAL_ERROR"
        assert (await gateway.refused(dry_run=True, **ONE)).reason == "DRY_RUN_OPERATION"

    async def test_callers_at_the_same_time_share_one_question(self, gateway: Gateway, ec2: FakeEc2) -> None:
        hold = ec2.hang()
        calls = [asyncio.create_task(gateway.refused(dry_run=True, **ONE)) for _ in range(10)]
        await eventually(lambda: gateway.inside == 10)
        hold.release()
        answers: list[Failure] = await asyncio.gather(*calls)
        assert {answer.reason for answer in answers} == {"DRY_RUN_OPERATION"}
        assert dry_runs(ec2) == 1

    async def test_it_lists_nothing(self, gateway: Gateway, world: FakeWorld) -> None:
        await gateway.describe(dry_run=True)
        assert {call.query for call in world.calls} == {Query(dry_run=True)}

    async def test_a_hanging_target_gets_its_outcome_before_the_deadline(
        self, gateway: Gateway, world: FakeWorld, clock: VirtualClock
    ) -> None:
        hold = world.ec2("main", "us-east-1").hang()
        # What asks, and who waits for it.
        response = await near_its_deadline(gateway.describe(dry_run=True), hold, clock, tasks_left=2)
        assert outcomes(response)["main", "us-east-1"] == ("NONE", "DEADLINE")
        assert outcomes(response)["other", "eu-central-1"][1] == ""


async def test_what_serves_one_caller_may_not_spend_everything(serve: Serve, clock: VirtualClock) -> None:
    gateway = await serve(budget={"capacity": 50, "refill": 0.5, "initial": 40})
    await gateway.describe(**ONE)
    answered = 0
    for number in range(40):
        clock.advance(0.001)
        refused = await failure(
            gateway.describe(2.0, image_ids=[image(number)], max_age=seconds(3600), **ONE)
        )
        if refused.reason != "IMAGE_NOT_FOUND":
            break
        answered += 1
    assert 1 <= answered <= 10
    # Everybody's reads are still paid.
    assert outcomes(await gateway.describe(max_age=NO_AGE, **ONE)) == {("main", "eu-central-1"): ("LIVE", "")}
