"""EC2's query protocol, outwards: XML of answers and errors.

moto's own serializer would do but for one thing: it cuts the milliseconds off every time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4
from xml.sax.saxutils import escape

from imagetasks_sandbox.refusal import Refusal
from imagetasks_sandbox.tasks import State, Task

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def timestamp(time: datetime) -> str:
    """A UTC time as EC2 writes it, ``2022-01-01T01:01:01.001Z``."""
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"


def element(name: str, value: Any) -> str:
    """One element: of a mapping its members, of a sequence its items, None is left out."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        content = "".join(element(key, each) for key, each in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        content = "".join(element("item", each) for each in value)
    else:
        content = escape(str(value))
    return f"<{name}>{content}</{name}>" if content else f"<{name}/>"


def response(action: str, members: Mapping[str, Any]) -> str:
    """The body of a successful answer; ``members`` by their names on the wire."""
    content = element("requestId", str(uuid4())) + "".join(
        element(key, each) for key, each in members.items()
    )
    return f'{_DECLARATION}<{action}Response xmlns="{_NAMESPACE}">{content}</{action}Response>'


def error(refused: Refusal) -> str:
    """The body of an error answer."""
    content = {
        "Errors": {"Error": {"Code": refused.code, "Message": refused.message}},
        "RequestID": str(uuid4()),
    }
    return _DECLARATION + element("Response", content)


def sts_error(refused: Refusal) -> str:
    """The body of an error answer of STS."""
    content = {
        "Error": {"Type": "Sender", "Code": refused.code, "Message": refused.message},
        "RequestId": str(uuid4()),
    }
    return element("ErrorResponse", content)


def task(each: Task, now: datetime) -> dict[str, Any]:
    """A StoreImageTaskResult by its names on the wire.

    The failure reason of a completed task is present and empty, as in live answers, though the documentation
    says null; of a task in progress it is absent.
    """
    reason = "" if each.state is State.COMPLETED else each.failure_reason
    return {
        "amiId": each.ami_id,
        "taskStartTime": timestamp(each.started),
        "bucket": each.bucket,
        "s3objectKey": each.key,
        "progressPercentage": each.percentage(now),
        "storeTaskState": each.state.value,
        "storeTaskFailureReason": reason,
    }
