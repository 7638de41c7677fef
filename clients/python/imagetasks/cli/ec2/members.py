"""From the contract's messages to EC2's members, in the order of EC2's model."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from imagetasks.v1 import store_image_tasks_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_MEMBERS = (
    ("AmiId", "ami_id"),
    ("TaskStartTime", "task_start_time"),
    ("Bucket", "bucket"),
    ("S3objectKey", "s3_object_key"),
    ("ProgressPercentage", "progress_percentage"),
    # EC2's own word, also for a state that came after this client.
    ("StoreTaskState", "ec2_store_task_state"),
    ("StoreTaskFailureReason", "store_task_failure_reason"),
)
_TIME = "TaskStartTime"


def of_task(task: pb.StoreImageTaskResult, *, show_target: bool) -> dict[str, Any]:
    """A task's members; those that EC2 did not send are absent.

    Args:
        task: The task.
        show_target: Add Account and Region, which EC2 does not have.
    """
    members: dict[str, Any] = {}
    for name, fieldname in _MEMBERS:
        if task.HasField(fieldname):  # type: ignore[arg-type]
            members[name] = getattr(task, fieldname)
    if _TIME in members:
        members[_TIME] = timestamp(task.task_start_time)
    if show_target:
        members["Account"] = task.account
        members["Region"] = task.region
    return members


def timestamp(time: "Timestamp") -> str:
    """A time as EC2 writes it, with milliseconds."""
    return f"{datetime.fromtimestamp(time.seconds, UTC):%Y-%m-%dT%H:%M:%S}.{time.nanos // 1_000_000:03d}Z"
