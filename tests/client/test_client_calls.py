"""What both clients ask and what they make of the answers."""

import asyncio
import inspect
import threading
from datetime import timedelta
from typing import Any

import grpc
import pytest
from either_client import collect
from google.protobuf.duration_pb2 import Duration
from scripted_gateway import (
    PATIENCE,
    ScriptedGateway,
    failing,
    gated,
    outcome,
    outcome_event,
    page_event,
    reason,
    status,
    summary_event,
    targets_answer,
    task,
)

import imagetasks
from imagetasks import aio, blocking
from imagetasks.v1 import store_image_tasks_pb2 as pb

Page = pb.DescribeStoreImageTasksResponse


def three_pages(request: pb.DescribeStoreImageTasksRequest, _: grpc.ServicerContext) -> Page:
    number = int(request.next_token or 1)
    return Page(
        store_image_task_results=[task(number=number), task(number=number + 100)],
        next_token=str(number + 1) if number < 3 else None,
        target_outcomes=[outcome()],
    )


def test_both_take_the_same_arguments() -> None:
    def taken(client: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {
            name: [each.replace(annotation=None) for each in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_")
        }

    assert taken(aio.Client) == taken(blocking.Client)
    assert inspect.signature(aio.connect).parameters == inspect.signature(blocking.connect).parameters


async def test_describe_lists_the_tasks_of_all_pages(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = three_pages

    listed = [task.task_id async for task in client.describe()]

    assert listed == ["task-1", "task-101", "task-2", "task-102", "task-3", "task-103"]
    assert [call.request.next_token for call in gateway.calls] == ["", "2", "3"]


async def test_later_pages_repeat_the_question(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = three_pages

    async for _ in client.describe(accounts=["prod"], filters={"bucket": ["b*"]}, page_size=2, max_age=7):
        pass

    first, *later = (call.request for call in gateway.calls)
    for request in later:
        request.ClearField("next_token")
        assert request == first


async def test_pages_are_the_contracts_own_messages(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = three_pages

    pages = [page async for page in client.describe().pages()]

    assert [type(page) for page in pages] == [Page] * 3
    assert pages[0].target_outcomes[0].source == pb.SOURCE_LIVE


async def test_a_listing_left_early_asks_for_no_further_page(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = three_pages

    pages = client.describe().pages()
    await anext(pages)
    await pages.aclose()

    assert len(gateway.calls) == 1


async def test_each_iteration_of_a_listing_asks_anew(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = three_pages
    listing = client.describe()

    first = [task.task_id async for task in listing]
    second = [task.task_id async for task in listing]

    assert first == second
    assert len(gateway.calls) == 6


async def test_a_listing_keeps_each_targets_first_failure(gateway: ScriptedGateway, client: Any) -> None:
    throttled = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow", reason("AWS_THROTTLED"))
    left_out = status(grpc.StatusCode.ABORTED, "left out", reason("LEFT_OUT"))

    def pages(request: pb.DescribeStoreImageTasksRequest, _: grpc.ServicerContext) -> Page:
        failure = left_out if request.next_token else throttled
        failed = outcome("us-east-1", failure, pb.SOURCE_NONE)
        return Page(next_token=None if request.next_token else "2", target_outcomes=[outcome(), failed])

    gateway.describe = pages
    listing = client.describe()
    assert listing.outcomes == ()
    async for _ in listing:
        pass

    assert listing.outcomes == (outcome(), outcome("us-east-1", throttled, pb.SOURCE_NONE))


async def test_describe_sends_what_was_asked(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = lambda *_: Page()

    async for _ in client.describe(
        image_ids=["ami-1"],
        filters={"task-state": ("InProgress", "Failed"), "bucket": ["a"]},
        accounts=["prod"],
        regions=["eu-central-1", "eu-west-1"],
        max_age=timedelta(milliseconds=1500),
        forbid_stale=True,
        page_size=7,
    ):
        pass

    assert gateway.calls[0].request == pb.DescribeStoreImageTasksRequest(
        image_ids=["ami-1"],
        filters=[
            pb.Filter(name="task-state", values=["InProgress", "Failed"]),
            pb.Filter(name="bucket", values=["a"]),
        ],
        accounts=["prod"],
        regions=["eu-central-1", "eu-west-1"],
        max_age=Duration(seconds=1, nanos=500_000_000),
        forbid_stale=True,
        max_results=7,
    )


async def test_what_was_not_given_is_absent(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = lambda *_: Page()
    gateway.stream = lambda *_: [summary_event()]

    async for _ in client.describe():
        pass
    async for _ in client.stream():
        pass

    assert gateway.calls[0].request == pb.DescribeStoreImageTasksRequest()
    assert gateway.calls[1].request == pb.StreamStoreImageTasksRequest(selector=pb.TaskSelector())


async def test_max_age_zero_is_sent(gateway: ScriptedGateway, client: Any) -> None:
    gateway.describe = lambda *_: Page()

    async for _ in client.describe(max_age=0):
        pass

    assert gateway.calls[0].request.HasField("max_age")


async def test_filters_may_be_messages(gateway: ScriptedGateway, client: Any) -> None:
    gateway.stream = lambda *_: [summary_event()]
    twice = [pb.Filter(name="bucket", values=["a*"]), pb.Filter(name="bucket", values=["*b"])]

    async for _ in client.stream(filters=twice):
        pass

    assert list(gateway.calls[0].request.selector.filters) == twice


@pytest.mark.parametrize(
    "question",
    [{"image_ids": "ami-1"}, {"regions": "eu-west-1"}, {"filters": {"bucket": "b"}}],
)
async def test_a_lone_string_is_no_list(client: Any, question: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="several strings"):
        client.describe(**question)


async def test_a_stream_yields_its_messages_as_they_come(gateway: ScriptedGateway, client: Any) -> None:
    gate = threading.Event()
    before = [page_event(task()), outcome_event()]
    after = [outcome_event("us-east-1"), summary_event(1, 2)]
    gateway.stream = gated(before, gate, after)
    seen = []

    async with client.stream() as stream:
        async for event in stream:
            seen.append(event)
            if len(seen) == 2:
                gate.set()

    assert seen == before + after


async def test_a_stream_sends_what_was_asked(gateway: ScriptedGateway, client: Any) -> None:
    gateway.stream = lambda *_: [summary_event()]

    async for _ in client.stream(
        image_ids=["ami-1"],
        filters={"bucket": ["a"]},
        accounts=["prod"],
        regions=["eu-west-1"],
        max_age=2,
        forbid_stale=True,
    ):
        pass

    assert gateway.calls[0].request == pb.StreamStoreImageTasksRequest(
        selector=pb.TaskSelector(
            accounts=["prod"],
            regions=["eu-west-1"],
            image_ids=["ami-1"],
            filters=[pb.Filter(name="bucket", values=["a"])],
        ),
        max_age=Duration(seconds=2),
        forbid_stale=True,
    )


async def test_leaving_a_stream_early_ends_the_call_at_the_gateway(
    gateway: ScriptedGateway,
    client: Any,
) -> None:
    gateway.stream = gated([page_event(task())], threading.Event(), [summary_event()])

    async with client.stream() as stream:
        async for _ in stream:
            break

    assert await asyncio.to_thread(gateway.calls[0].over.wait, PATIENCE)


async def test_a_closed_stream_yields_nothing_more(gateway: ScriptedGateway, client: Any) -> None:
    gateway.stream = gated([page_event(task())], threading.Event(), [summary_event()])
    stream = client.stream()

    await anext(aiter(stream))
    await stream.aclose()
    await stream.aclose()

    assert [event async for event in stream] == []


async def test_what_came_before_a_streams_error_is_delivered(gateway: ScriptedGateway, client: Any) -> None:
    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        yield page_event(task())
        failing(status(grpc.StatusCode.INTERNAL, "broken", reason("INTERNAL")))(request, context)

    gateway.stream = respond
    stream = client.stream()
    seen: list[Any] = []

    with pytest.raises(imagetasks.InternalError):
        await collect(stream, seen)

    assert seen == [page_event(task())]
    assert [event async for event in stream] == []


async def test_targets_are_listed(gateway: ScriptedGateway, client: Any) -> None:
    gateway.targets = lambda *_: targets_answer("eu-central-1", "us-east-1")

    answer = await client.targets(accounts=["prod"], regions=["eu-central-1"])

    assert answer == targets_answer("eu-central-1", "us-east-1")
    assert gateway.calls[0].request == pb.ListTargetsRequest(accounts=["prod"], regions=["eu-central-1"])


async def test_a_permitted_dry_run_of_one_target_is_an_outcome(gateway: ScriptedGateway, client: Any) -> None:
    permitted = reason("DRY_RUN_OPERATION", account="prod", region="eu-central-1")
    gateway.describe = failing(status(grpc.StatusCode.FAILED_PRECONDITION, "would have", permitted))

    (answer,) = await client.dry_run(regions=["eu-central-1"])

    assert gateway.calls[0].request.dry_run
    assert (answer.target.account, answer.target.region) == ("prod", "eu-central-1")
    assert not answer.HasField("status")


async def test_a_dry_run_of_several_targets_is_their_outcomes(gateway: ScriptedGateway, client: Any) -> None:
    denied = status(grpc.StatusCode.PERMISSION_DENIED, "no", reason("AWS_UNAUTHORIZED_OPERATION"))
    outcomes = (outcome(), outcome("us-east-1", denied, pb.SOURCE_NONE))
    gateway.describe = lambda *_: Page(target_outcomes=outcomes)

    assert await client.dry_run() == outcomes


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "AWS_UNAUTHORIZED_OPERATION",
            imagetasks.PermissionDeniedError,
        ),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            "AWS_REGION_NOT_ENABLED",
            imagetasks.FailedPreconditionError,
        ),
    ],
)
async def test_a_dry_run_that_is_not_permitted_raises(
    gateway: ScriptedGateway,
    client: Any,
    code: grpc.StatusCode,
    name: str,
    kind: type[imagetasks.Error],
) -> None:
    gateway.describe = failing(status(code, "no", reason(name)))

    with pytest.raises(kind):
        await client.dry_run()
