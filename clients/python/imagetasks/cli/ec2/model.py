"""The shapes of DescribeStoreImageTasks, as far as a command line needs them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

OPERATION = "DescribeStoreImageTasks"
WAITER = "StoreImageTaskComplete"
RESULTS = "StoreImageTaskResults"


@dataclass(frozen=True)
class Shape:
    """What a value may be.

    Attributes:
        kind: "string", "boolean", "integer", "list" or "structure".
        member: Of a list: what its items are.
        members: Of a structure: its members, in the order of EC2's model.
        least: Of an integer: the smallest that is sent.
    """

    kind: str
    member: "Shape | None" = None
    members: "Mapping[str, Shape]" = field(default_factory=dict)
    least: int | None = None


STRING = Shape("string")
STRINGS = Shape("list", member=STRING)
BOOLEAN = Shape("boolean")
FILTER = Shape("structure", members={"Name": STRING, "Values": STRINGS})
FILTERS = Shape("list", member=FILTER)
INPUT = Shape(
    "structure",
    members={
        "ImageIds": STRINGS,
        "DryRun": BOOLEAN,
        "Filters": FILTERS,
        "NextToken": STRING,
        "MaxResults": Shape("integer", least=1),
    },
)


def sample_input() -> dict[str, Any]:
    """A request with every member, to be filled out."""
    return {
        "ImageIds": [""],
        "DryRun": True,
        "Filters": [{"Name": "", "Values": [""]}],
        "NextToken": "",
        "MaxResults": 0,
    }


def sample_output() -> dict[str, Any]:
    """An answer with every member, each string its own name."""
    task = {
        "AmiId": "AmiId",
        "TaskStartTime": datetime(1970, 1, 1),  # noqa: DTZ001 - printed without an offset
        "Bucket": "Bucket",
        "S3objectKey": "S3objectKey",
        "ProgressPercentage": 0,
        "StoreTaskState": "StoreTaskState",
        "StoreTaskFailureReason": "StoreTaskFailureReason",
    }
    return {RESULTS: [task], "NextToken": "NextToken"}
