"""From a scenario's words to the contract's messages, and back to what a runner tells of them."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from imagetasks.v1 import store_image_tasks_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]
# What each `call` of a scenario asks, and by which method.
METHODS = {
    "describe": "DescribeStoreImageTasks",
    "list": "DescribeStoreImageTasks",
    "stream": "StreamStoreImageTasks",
    "watch": "WatchStoreImageTasks",
    "raw_watch": "WatchStoreImageTasks",
    "wait": "WaitStoreImageTasks",
    "raw_wait": "WaitStoreImageTasks",
    "targets": "ListTargets",
}
_CODES = {code.name: code.value[0] for code in grpc.StatusCode}
# Field 2000 with the bytes "later": of a version of the contract that nobody has written yet.
_UNKNOWN = b"\x82\x7d\x05later"


def request_type(method: str) -> type[Message]:
    """The class of a method's requests."""
    return getattr(pb, SERVICE.methods_by_name[method].input_type.name)  # type: ignore[no-any-return]


def response_type(method: str) -> type[Message]:
    """The class of a method's answers."""
    return getattr(pb, SERVICE.methods_by_name[method].output_type.name)  # type: ignore[no-any-return]


def build(kind: type[Message], data: Mapping[str, Any], *, unknown: bool = False) -> Message:
    """A message from its JSON form; with unknown fields in it and in all it holds, if wanted."""
    message: Message = json_format.ParseDict(dict(data), kind())
    if unknown:
        for each in (message, *_within(message)):
            each.MergeFromString(_UNKNOWN)
    return message


def status(fail: Mapping[str, Any]) -> Status:
    """The status that a `fail` step stands for."""
    details: list[Message] = []
    if fail.get("reason"):
        names = {
            "account": "account",
            "region": "region",
            "aws_error_code": "awsErrorCode",
            "aws_request_id": "awsRequestId",
        }
        metadata = {key: fail[name] for name, key in names.items() if name in fail}
        domain = fail.get("domain", "imagetasks")
        details.append(ErrorInfo(domain=domain, reason=fail["reason"], metadata=metadata))
    if fail.get("retry_delay") is not None:
        delay = Duration()
        delay.FromMilliseconds(round(fail["retry_delay"] * 1000))
        details.append(RetryInfo(retry_delay=delay))
    if fail.get("fields"):
        violations = [BadRequest.FieldViolation(field=each, description="not so") for each in fail["fields"]]
        details.append(BadRequest(field_violations=violations))
    if fail.get("quota"):
        details.append(QuotaFailure(violations=[QuotaFailure.Violation(subject=fail["quota"])]))
    if fail.get("precondition"):
        violation = PreconditionFailure.Violation(type=fail["precondition"], subject="somewhere")
        details.append(PreconditionFailure(violations=[violation]))
    if "target_failures" in fail:
        details.append(
            pb.TargetFailures(
                failures=[pb.TargetFailures.Failure(**each) for each in fail["target_failures"]]
            )
        )
    made = Status(code=_CODES[fail["code"]], message=fail.get("message", ""))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        made.details.append(packed)
    if fail.get("unknown"):
        made.details.insert(0, AnyMessage(type_url="type.googleapis.com/later.Detail", value=b"\xff"))
    return made


def encode(message: Message) -> str:
    """A message as a runner gets it: its bytes in base64."""
    return base64.b64encode(message.SerializeToString()).decode()


def decode(kind: type[Message], text: str) -> Message:
    """What a runner says it received.

    Raises:
        ValueError: It is no such message.
    """
    try:
        message = kind.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, json_format.Error) as error:
        raise ValueError(str(error)) from error
    message.DiscardUnknownFields()
    return message


def view(task: pb.StoreImageTaskResult) -> dict[str, Any]:
    """What an application sees of a task: `null` is what EC2 did not send."""
    return {
        "task_id": task.task_id,
        "ami_id": task.ami_id if task.HasField("ami_id") else None,
        "percentage": task.progress_percentage if task.HasField("progress_percentage") else None,
        "state": task.store_task_state,
        "ec2_state": task.ec2_store_task_state if task.HasField("ec2_store_task_state") else None,
        "failure": task.store_task_failure_reason if task.HasField("store_task_failure_reason") else None,
    }


def tasks(message: Message) -> list[pb.StoreImageTaskResult]:
    """The tasks in a message, in order."""
    return [each for each in _within(message) if isinstance(each, pb.StoreImageTaskResult)]


def _within(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            yield each
            yield from _within(each)
