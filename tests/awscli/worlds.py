"""Worlds of store tasks."""

from datetime import UTC, datetime, timedelta
from typing import Any

STATES = ("InProgress", "Completed", "Failed")


NEWEST = datetime.now(UTC) - timedelta(hours=1)


def start_of(number: int) -> str:
    """The start of the n-th newest task: distinct, with milliseconds, within the 31 days that EC2 shows."""
    time = NEWEST - timedelta(minutes=90 * number, milliseconds=7 * number)
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"


def image_id(number: int) -> str:
    """An AMI's id."""
    return f"ami-{number:017x}"


def task(number: int) -> dict[str, Any]:
    """The n-th newest of plain tasks; some lack a member, as EC2's do."""
    state = STATES[number % 3]
    made = {
        "AmiId": image_id(number // 2),
        "TaskStartTime": start_of(number),
        "Bucket": ("alpha", "bücket", "日本語")[number % 3 - 1],
        "S3objectKey": f"{image_id(number // 2)}.bin",
        "ProgressPercentage": (number * 13) % 100,
        "StoreTaskState": state,
    }
    if state != "InProgress":
        made["StoreTaskFailureReason"] = "" if state == "Completed" else "AccessDenied: no\tway"
    return made
