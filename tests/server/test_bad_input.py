"""What is wrong with a request is said before EC2 is asked, and the field is named."""

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld, image
from gateway_stage import PATIENCE, Failure, Gateway, failure, seconds
from google.protobuf.duration_pb2 import Duration

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.tokens import PageToken, _unpack

A_FILTER = pb.Filter(name="bucket", values=["archive"])

Case = tuple[str, dict[str, Any], str, str]

SELECTIONS: list[Case] = [
    ("malformed id", {"image_ids": ["ami-XYZ"]}, "image_ids[0]", "IMAGE_ID_MALFORMED"),
    ("id of 9 digits", {"image_ids": [image(1), "ami-123456789"]}, "image_ids[1]", "IMAGE_ID_MALFORMED"),
    ("empty id", {"image_ids": [""]}, "image_ids[0]", "IMAGE_ID_MALFORMED"),
    ("id with a newline", {"image_ids": [image(1) + "\n"]}, "image_ids[0]", "IMAGE_ID_MALFORMED"),
    ("unknown filter", {"filters": [pb.Filter(name="state", values=["x"])]}, "filters[0].name", ""),
    ("filter in capitals", {"filters": [pb.Filter(name="Bucket", values=["x"])]}, "filters[0].name", ""),
    ("filter without name", {"filters": [pb.Filter(values=["x"])]}, "filters[0].name", ""),
    ("filter without values", {"filters": [A_FILTER, pb.Filter(name="bucket")]}, "filters[1].values", ""),
    ("51 filters", {"filters": [A_FILTER] * 51}, "filters", ""),
    ("201 values", {"filters": [pb.Filter(name="bucket", values=["x"] * 201)]}, "filters", ""),
    (
        "201 values in all",
        {"filters": [pb.Filter(name="bucket", values=["x"] * 67)] * 3},
        "filters",
        "",
    ),
    ("huge value", {"filters": [pb.Filter(name="bucket", values=["x" * 256])]}, "filters[0].values", ""),
    ("malformed account", {"accounts": ["main", "no spaces"]}, "accounts[1]", ""),
    ("empty account", {"accounts": [""]}, "accounts[0]", ""),
    ("malformed Region", {"regions": ["Frankfurt"]}, "regions[0]", ""),
    ("Region in capitals", {"regions": ["EU-CENTRAL-1"]}, "regions[0]", ""),
    ("too many names", {"regions": ["eu-central-1"] * 2001}, "regions", ""),
]

DESCRIBE_ONLY: list[Case] = [
    ("21 ids", {"image_ids": [image(n) for n in range(21)]}, "image_ids", ""),
    ("max_results 0", {"max_results": 0}, "max_results", ""),
    ("max_results negative", {"max_results": -1}, "max_results", ""),
    ("max_results 201", {"max_results": 201}, "max_results", ""),
    ("ids with max_results", {"image_ids": [image(1)], "max_results": 5}, "max_results", "FIELD_CONFLICT"),
    ("ignored filter malformed", {"image_ids": [image(1)], "filters": [pb.Filter()]}, "filters[0].name", ""),
    ("token of nobody", {"next_token": "garbage"}, "next_token", "PAGE_TOKEN_INVALID"),
    ("token of EC2", {"next_token": "eyJ2IjoiMSJ9" * 8}, "next_token", "PAGE_TOKEN_INVALID"),
    ("token not ASCII", {"next_token": "ü" * 40}, "next_token", "PAGE_TOKEN_INVALID"),
    ("huge token", {"next_token": "A" * 100_000}, "next_token", "PAGE_TOKEN_INVALID"),
    (
        "dry run with malformed id",
        {"dry_run": True, "image_ids": ["x"]},
        "image_ids[0]",
        "IMAGE_ID_MALFORMED",
    ),
]

STREAM_ONLY: list[Case] = [
    ("201 ids", {"image_ids": [image(n) for n in range(201)]}, "selector.image_ids", ""),
]

MAX_AGES: list[Case] = [
    ("negative max_age", {"max_age": Duration(seconds=-1)}, "max_age", ""),
    ("negative nanos", {"max_age": Duration(nanos=-1)}, "max_age", ""),
    ("a second of nanos", {"max_age": Duration(nanos=1_000_000_000)}, "max_age", ""),
]


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(*rest, id=name) for name, *rest in cases]


@pytest.fixture
async def gateway(serve: Any) -> AsyncIterator[Gateway]:
    gateway: Gateway = await serve()
    yield gateway
    assert gateway.world.calls == []


def check(refused: Failure, field: str, reason: str) -> None:
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == [field]
    assert refused.reason == (reason or "INVALID_FIELD")
    assert refused.metadata == {}
    assert refused.text.startswith(field)


@pytest.mark.parametrize(("request_", "field", "reason"), named(SELECTIONS + DESCRIBE_ONLY + MAX_AGES))
async def test_describe_names_the_field(
    gateway: Gateway, request_: dict[str, Any], field: str, reason: str
) -> None:
    check(await gateway.refused(**request_), field, reason)


@pytest.mark.parametrize(("request_", "field", "reason"), named(SELECTIONS + STREAM_ONLY + MAX_AGES))
async def test_stream_names_the_field_before_its_first_message(
    gateway: Gateway, request_: dict[str, Any], field: str, reason: str
) -> None:
    field = field if field == "max_age" or field.startswith("selector.") else f"selector.{field}"
    check(await failure(gateway.stream(**request_)), field, reason)


@pytest.mark.parametrize("field", ["accounts", "regions"])
async def test_list_targets_names_the_field(gateway: Gateway, field: str) -> None:
    call = gateway.stub.ListTargets(pb.ListTargetsRequest(**{field: ["?"]}), timeout=PATIENCE)
    check(await failure(call), f"{field}[0]", "")


async def test_bytes_that_are_no_request_are_refused(gateway: Gateway) -> None:
    channel: Any = gateway.channel
    random_bytes = [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(64) + b"\x07"]
    for method in ("DescribeStoreImageTasks", "StreamStoreImageTasks", "ListTargets", "WaitStoreImageTasks"):
        path = f"/imagetasks.v1.StoreImageTaskService/{method}"
        for content in random_bytes:
            if method == "StreamStoreImageTasks":
                call: Any = anext(aiter(channel.unary_stream(path)(content, timeout=PATIENCE)))
            else:
                call = channel.unary_unary(path)(content, timeout=PATIENCE)
            check(await failure(call), "request", "")


@pytest.mark.parametrize("request_", [{"accounts": ["nobody"]}, {"accounts": ["main", "nobody"]}])
async def test_an_unknown_account_is_not_found(gateway: Gateway, request_: dict[str, Any]) -> None:
    for call in (gateway.describe(**request_), gateway.stream(**request_)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ACCOUNT")
        assert refused.metadata == {"account": "nobody"}


@pytest.mark.parametrize(
    "request_",
    [
        {"regions": ["ap-south-1"]},
        {"regions": ["eu-central-1", "ap-south-1"]},
        {"accounts": ["other"], "regions": ["ap-south-1"]},
    ],
)
async def test_an_unknown_region_is_not_found(gateway: Gateway, request_: dict[str, Any]) -> None:
    for call in (gateway.describe(**request_), gateway.stream(**request_)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_REGION")
        assert refused.metadata == {"region": "ap-south-1"}


async def test_an_unknown_method_is_unimplemented(gateway: Gateway) -> None:
    call: Any = gateway.channel.unary_unary("/imagetasks.v1.StoreImageTaskService/DeleteEverything")
    assert (await failure(call(b"", timeout=PATIENCE))).code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_larger_than_any_legal_one_is_refused(gateway: Gateway) -> None:
    refused = await gateway.refused(next_token="A" * 2_000_000)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED


class TestTokens:
    """A token is good for the question it was given for, undamaged."""

    @pytest.fixture
    async def gateway(self, serve: Any, world: FakeWorld) -> Gateway:
        gateway: Gateway = await serve()
        for ec2 in world.all():
            ec2.add_ended(2)
        return gateway

    async def token(self, gateway: Gateway, **request: Any) -> str:
        page = await gateway.describe(max_results=3, **request)
        assert page.next_token
        return page.next_token

    async def test_a_damaged_one_is_refused_wherever_the_damage_is(self, gateway: Gateway) -> None:
        token = await self.token(gateway)
        asked = len(gateway.world.calls)
        for place in range(0, len(token), 7):
            other = "A" if token[place] != "A" else "B"
            check(
                await gateway.refused(next_token=token[:place] + other + token[place + 1 :]),
                "next_token",
                "PAGE_TOKEN_INVALID",
            )
        for cut in (token[:-1], token[1:], token + token, token + "AA"):
            check(await gateway.refused(next_token=cut), "next_token", "PAGE_TOKEN_INVALID")
        assert len(gateway.world.calls) == asked

    @pytest.mark.parametrize(
        "other",
        [
            {"filters": [A_FILTER]},
            {"accounts": ["main"]},
            {"regions": ["eu-central-1"]},
            {"image_ids": [image(1)]},
        ],
        ids=lambda other: next(iter(other)),
    )
    async def test_one_of_another_question_is_refused(self, gateway: Gateway, other: dict[str, Any]) -> None:
        token = await self.token(gateway)
        check(await gateway.refused(next_token=token, **other), "next_token", "PAGE_TOKEN_INVALID")

    async def test_the_page_size_and_freshness_may_change(self, gateway: Gateway) -> None:
        token = await self.token(gateway)
        page = await gateway.describe(
            next_token=token, max_results=200, max_age=seconds(3600), forbid_stale=True
        )
        assert len(page.store_image_task_results) == 3
        assert not page.HasField("next_token")

    async def test_one_made_by_hand_gives_no_more_than_the_caller_may_ask(self, gateway: Gateway) -> None:
        token = await self.token(gateway)
        question = fingerprint_in(token)
        forged = PageToken(
            question, (0, -(2**70), ""), 0.0, {"main": ["us-east-1"], "nobody": ["x"]}
        ).encode()
        page = await gateway.describe(next_token=forged)
        assert {task.region for task in page.store_image_task_results} <= {"us-east-1"}

    @pytest.mark.parametrize("floor", [float("nan"), float("inf"), -float("inf"), 1e300])
    async def test_an_impossible_floor_made_by_hand_is_refused_or_answered(
        self, gateway: Gateway, floor: float
    ) -> None:
        question = fingerprint_in(await self.token(gateway))
        forged = PageToken(question, (0, 0, ""), floor, {"main": ["us-east-1"]}).encode()
        try:
            await gateway.describe(5.0, next_token=forged)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  # both are right


def fingerprint_in(token: str) -> str:
    """The question's fingerprint in a token."""
    question: str = _unpack(token)[0]
    return question
