"""What the canned EC2 knows: per account and Region the tasks, the AMIs, and how it behaves.

A world is posted as JSON, and only what it names is replaced:

    {"targets": [{"account": "000000000001", "region": "eu-central-1",
                  "tasks": [{"AmiId": "ami-12345678", "TaskStartTime": "2026-01-01T01:01:01.001Z", ...}],
                  "images": ["ami-87654321"],
                  "refusal": {"code": "Unavailable", "message": "Come back later.", "status": 503},
                  "seconds": 0.2}]}

A task has EC2's members by their names in EC2's model; one that is absent is not sent, one that is empty is
sent empty. `images` are AMIs beside those of the tasks. With a `refusal` every DescribeStoreImageTasks is
refused so. `seconds` is how long each answer takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Where worlds are posted to.
WORLD_PATH = "/canned/world"

MEMBERS = (
    "AmiId",
    "TaskStartTime",
    "Bucket",
    "S3objectKey",
    "ProgressPercentage",
    "StoreTaskState",
    "StoreTaskFailureReason",
)

Task = Mapping[str, Any]


class Refusal(Exception):
    """An error answer: EC2's code, its text, and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True)
class Target:
    """One account in one Region.

    Attributes:
        tasks: Newest first; those without a start time last.
        images: Ids of AMIs without a task.
        refusal: What every DescribeStoreImageTasks is refused with.
        seconds: How long an answer takes.
    """

    tasks: Sequence[Task] = ()
    images: frozenset[str] = frozenset()
    refusal: Refusal | None = None
    seconds: float = 0.0

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Target":
        """Reads one of a world's targets.

        Raises:
            ValueError: It has a member that means nothing.
        """
        known = {"account", "region", "tasks", "images", "refusal", "seconds"}
        tasks = given.get("tasks", ())
        strange = (set(given) - known) | {name for task in tasks for name in task if name not in MEMBERS}
        if strange:
            raise ValueError(f"no such member: {min(strange)}")
        refusal = given.get("refusal")
        return cls(
            tasks=sorted(tasks, key=lambda task: str(task.get("TaskStartTime", "")), reverse=True),
            images=frozenset(given.get("images", ())),
            refusal=Refusal(**refusal) if refusal else None,
            seconds=float(given.get("seconds", 0.0)),
        )


@dataclass
class World:
    """All targets, by account id and Region. One that was never posted has no tasks."""

    targets: dict[tuple[str, str], Target] = field(default_factory=dict)

    def post(self, given: Mapping[str, Any]) -> None:
        """Replaces the targets that are given.

        Raises:
            ValueError, KeyError: The world is malformed; nothing was replaced.
        """
        parsed = {(each["account"], each["region"]): Target.parse(each) for each in given["targets"]}
        self.targets.update(parsed)

    def target(self, account: str, region: str) -> Target:
        """What is known of one target."""
        return self.targets.get((account, region)) or Target()

    def regions(self, account: str) -> list[str]:
        """The Regions in which the account was given anything."""
        return sorted(region for owner, region in self.targets if owner == account)
