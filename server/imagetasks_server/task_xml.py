"""EC2's XML of DescribeStoreImageTasks straight into the contract's messages. Pure.

Botocore would first make a dict of every task, which takes most of the time that an answer takes. What
is here reads as botocore does from EC2's model: names without their namespace, an empty element is an
empty string, unknown elements are passed over; a test holds it against botocore's own parser.
"""

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC
from typing import Final
from xml.etree import ElementTree as ET

from botocore.parsers import ResponseParserError

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.aws_models import parse_time
from imagetasks_server.targets import Target
from imagetasks_server.upstream import Page

_ROOT: Final = "DescribeStoreImageTasksResponse"
_STATES: Final = {
    "InProgress": pb.STORE_TASK_STATE_IN_PROGRESS,
    "Completed": pb.STORE_TASK_STATE_COMPLETED,
    "Failed": pb.STORE_TASK_STATE_FAILED,
}


def page_of(body: bytes, target: Target) -> Page:
    """EC2's answer as a page of this target.

    The messages of a page live in one parent: standalone they take five times the memory.

    Raises:
        ResponseParserError: The body is not such an answer.
    """
    parser = ET.XMLParser(target=ET.TreeBuilder(), encoding="utf-8")  # noqa: S314  # AWS's own, over TLS
    try:
        parser.feed(body)
        root = parser.close()
    except ET.ParseError as error:
        raise ResponseParserError(f"EC2's answer is not XML: {error}") from None
    # "{http://ec2.amazonaws.com/doc/2016-11-15/}": one for the whole document.
    namespace, bracket, name = root.tag.rpartition("}")
    if name != _ROOT:
        raise ResponseParserError(f"EC2's answer is a {name}, not a {_ROOT}")
    namespace += bracket
    try:
        tasks = _tasks(
            root.iterfind(f"{namespace}storeImageTaskResultSet/{namespace}item"), namespace, target
        )
    except ValueError as error:
        raise ResponseParserError(f"EC2's answer has a value that is none: {error}") from None
    return Page(tasks.store_image_task_results, root.findtext(f"{namespace}nextToken") or None)


def _tasks(items: Iterator[ET.Element], ns: str, target: Target) -> pb.DescribeStoreImageTasksResponse:
    # The names on the wire are not those of EC2's documentation.
    ami_id, bucket, key, reason = (
        f"{ns}amiId",
        f"{ns}bucket",
        f"{ns}s3objectKey",
        f"{ns}storeTaskFailureReason",
    )
    progress, state, start = f"{ns}progressPercentage", f"{ns}storeTaskState", f"{ns}taskStartTime"
    prefix = f"{target.partition}\0{target.account_id}\0{target.region}\0"
    parent = pb.DescribeStoreImageTasksResponse()
    add = parent.store_image_task_results.add
    for item in items:
        sent = {member.tag: member.text or "" for member in item}.get
        percentage, word, started = sent(progress), sent(state), sent(start)
        seconds, nanos = _instant(started) if started is not None else (0, 0)
        identity = (sent(ami_id), sent(bucket), sent(key), (seconds, nanos) if started is not None else None)
        # None leaves a member absent; what was sent empty is set empty.
        task = add(
            ami_id=identity[0],
            bucket=identity[1],
            s3_object_key=identity[2],
            progress_percentage=int(percentage) if percentage is not None else None,
            store_task_state=_STATES.get(word or "", pb.STORE_TASK_STATE_UNSPECIFIED),
            ec2_store_task_state=word,
            store_task_failure_reason=sent(reason),
            task_id=task_id(prefix, identity),
            account=target.account,
            account_id=target.account_id,
            region=target.region,
        )
        if started is not None:
            task.task_start_time.seconds = seconds
            task.task_start_time.nanos = nanos
            task.task_start_time.SetInParent()
    return parent


def _instant(text: str) -> tuple[int, int]:
    time = parse_time(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return math.floor(time.timestamp()), time.microsecond * 1000


def task_id(prefix: str, identity: tuple[str | None, str | None, str | None, tuple[int, int] | None]) -> str:
    """The identity's digest: the same in every process that speaks to the same account and Region.

    Args:
        prefix: Partition, account id and Region, each with a NUL behind.
        identity: AMI id, bucket, key and start (unix seconds, nanoseconds); None is what EC2 did not send.
    """
    return hashlib.blake2b(f"{prefix}{identity!r}".encode(), digest_size=12).hexdigest()
