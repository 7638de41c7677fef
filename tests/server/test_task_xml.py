"""Our reading of EC2's XML against botocore's own, on the same answers."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.sax.saxutils import escape

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import ResponseParserError, create_parser
from hypothesis import example, given
from hypothesis import strategies as st

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.attempts import one_call
from imagetasks_server.aws_parser import BODY, ParserFactory
from imagetasks_server.targets import Target
from imagetasks_server.task_xml import page_of

TARGET = Target("main", "eu-central-1", "123456789012", "aws")
MODEL = ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")
SHAPE = MODEL.operation_model("DescribeStoreImageTasks").output_shape
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"

# What XML 1.0 can carry; a carriage return would be sent as a newline.
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\n\t"),
    max_size=30,
)
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000, tzinfo=UTC)
)
MEMBERS = {
    "amiId": TEXT,
    "taskStartTime": TIMES.map(lambda time: time.isoformat(timespec="milliseconds")[:23] + "Z"),
    "bucket": TEXT,
    "s3objectKey": TEXT,
    "progressPercentage": st.integers(-(2**31), 2**31 - 1).map(str),
    "storeTaskState": st.sampled_from(["InProgress", "Completed", "Failed", "Paused", ""]),
    "storeTaskFailureReason": TEXT,
    "somethingNew": TEXT,
}
ITEMS = st.lists(st.fixed_dictionaries({}, optional=MEMBERS), max_size=8)


def xml(items: list[dict[str, str]], token: str | None, namespace: str = NAMESPACE) -> bytes:
    rows = "".join(
        "<item>" + "".join(f"<{name}>{escape(text)}</{name}>" for name, text in item.items()) + "</item>"
        for item in items
    )
    tail = "" if token is None else f"<nextToken>{escape(token)}</nextToken>"
    return (
        f'<DescribeStoreImageTasksResponse xmlns="{namespace}"><requestId>r</requestId>'
        f"<storeImageTaskResultSet>{rows}</storeImageTaskResultSet>{tail}</DescribeStoreImageTasksResponse>"
    ).encode()


def botocores(body: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = create_parser("ec2").parse(
        {"body": body, "headers": {}, "status_code": 200}, SHAPE
    )
    return parsed


def as_botocore(task: pb.StoreImageTaskResult) -> dict[str, Any]:
    names = {
        "ami_id": "AmiId",
        "task_start_time": "TaskStartTime",
        "bucket": "Bucket",
        "s3_object_key": "S3objectKey",
        "progress_percentage": "ProgressPercentage",
        "ec2_store_task_state": "StoreTaskState",
        "store_task_failure_reason": "StoreTaskFailureReason",
    }
    found = {name: getattr(task, field) for field, name in names.items() if task.HasField(field)}
    if "TaskStartTime" in found:
        found["TaskStartTime"] = found["TaskStartTime"].ToDatetime(UTC)
    return found


@given(ITEMS, st.none() | TEXT, st.sampled_from([NAMESPACE, "urn:other"]))
@example([{"amiId": "", "storeTaskFailureReason": ""}], "", NAMESPACE)
def test_every_member_is_read_as_botocore_reads_it(
    items: list[dict[str, str]], token: str | None, namespace: str
) -> None:
    body = xml(items, token, namespace)
    page = page_of(body, TARGET)
    theirs = botocores(body)
    assert [as_botocore(task) for task in page.tasks] == theirs.get("StoreImageTaskResults", [])
    assert (page.next_token or "") == theirs.get("NextToken", "")


@pytest.mark.parametrize(
    "text",
    ["2022-01-01T01:01:01.001Z", "2022-01-01T01:01:01Z", "2022-01-01T03:01:01.001+02:00", "20220101T010101Z"],
)
def test_every_form_of_a_time_is_read_as_botocore_reads_it(text: str) -> None:
    body = xml([{"taskStartTime": text}], None)
    (task,) = page_of(body, TARGET).tasks
    (theirs,) = botocores(body)["StoreImageTaskResults"]
    assert task.task_start_time.ToDatetime(UTC) == theirs["TaskStartTime"].astimezone(UTC)


@given(st.binary(max_size=200) | TEXT.map(str.encode))
def test_what_is_no_answer_is_an_error_and_never_an_empty_list(body: bytes) -> None:
    with pytest.raises(ResponseParserError):
        page_of(body, TARGET)


@given(ITEMS, st.data())
def test_a_truncated_answer_is_an_error(items: list[dict[str, str]], data: st.DataObject) -> None:
    body = xml(items, "more")
    with pytest.raises(ResponseParserError):
        page_of(body[: data.draw(st.integers(0, len(body) - 1))], TARGET)


@pytest.mark.parametrize(
    "item", [{"progressPercentage": "many"}, {"taskStartTime": "once"}, {"progressPercentage": ""}]
)
def test_a_value_that_is_none_is_an_error(item: dict[str, str]) -> None:
    with pytest.raises(ResponseParserError):
        page_of(xml([item], None), TARGET)


@given(ITEMS)
def test_task_ids_tell_apart_exactly_the_identities(items: list[dict[str, str]]) -> None:
    page = page_of(xml(items, None), TARGET)
    identities = [
        tuple(item.get(name) for name in ("amiId", "bucket", "s3objectKey", "taskStartTime"))
        for item in items
    ]
    pairs = set(zip(identities, (task.task_id for task in page.tasks), strict=True))
    assert len(pairs) == len(set(identities)) == len({task_id for _, task_id in pairs})
    elsewhere = page_of(xml(items, None), Target("main", "us-east-1", "123456789012", "aws"))
    assert {task.task_id for task in elsewhere.tasks}.isdisjoint(task.task_id for task in page.tasks)


def test_a_start_before_1970_keeps_its_fraction() -> None:
    (task,) = page_of(xml([{"taskStartTime": "1969-12-31T23:59:59.250Z"}], None), TARGET).tasks
    start = datetime(1970, 1, 1, tzinfo=timezone(timedelta(0))) - timedelta(milliseconds=750)
    assert task.task_start_time.ToDatetime(UTC) == start


async def unpaid() -> None:
    raise AssertionError


def test_only_the_success_of_a_marked_call_is_handed_on_as_it_came() -> None:
    parser = ParserFactory().create_parser("ec2")

    def parse(body: bytes, status: int, operation: str) -> Any:
        shape = MODEL.operation_model(operation).output_shape
        return asyncio.run(parser.parse({"body": body, "headers": {}, "status_code": status}, shape))

    refusal = b"<Response><Errors><Error><Code>Blocked</Code></Error></Errors></Response>"
    with one_call(unpaid, lambda: None):
        assert parse(b"anything", 200, "DescribeStoreImageTasks")[BODY] == b"anything"
        assert parse(refusal, 400, "DescribeStoreImageTasks")["Error"]["Code"] == "Blocked"
        assert BODY not in parse(b"<DescribeRegionsResponse/>", 200, "DescribeRegions")
    assert BODY not in parse(xml([], None), 200, "DescribeStoreImageTasks")
