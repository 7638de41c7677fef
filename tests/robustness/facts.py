"""What a client knows: a task as it is compared, a token as it is read, and all that the client holds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import tokens

Event = pb.WatchStoreImageTasksResponse
REMOVED = pb.TaskChange.TYPE_REMOVED
# A target as callers name it: account, Region.
Name = tuple[str, str]
Matches = Callable[[pb.StoreImageTaskResult], bool]


class Fact(NamedTuple):
    """What is compared of a task."""

    word: str
    percentage: int
    reason: str
    stalled: bool

    @property
    def ended(self) -> bool:
        return self.word in {"Completed", "Failed"}

    def is_newer(self, other: "Fact | None") -> bool:
        """Whether it tells what the other does not know yet; of a task that moves on as tasks do."""
        if other is None:
            return True
        if self.percentage != other.percentage:
            return self.percentage > other.percentage
        return self.word != other.word and not other.ended


Facts = dict[str, Fact]


def fact(task: pb.StoreImageTaskResult) -> Fact:
    return Fact(
        task.ec2_store_task_state,
        task.progress_percentage,
        task.store_task_failure_reason,
        task.pace.stalled,
    )


class Mark(NamedTuple):
    """What a resume token says."""

    epoch: str
    revision: int
    uncovered: frozenset[Name]


def mark_of(token: str) -> Mark:
    _, epoch, revision, _, uncovered, _ = tokens._unpack(token)
    return Mark(epoch, revision, frozenset((account, region) for account, region in uncovered))


@dataclass
class Held:
    """What a client holds, of which targets the snapshot is complete, and which are said to be followed."""

    tasks: dict[Name, Facts] = field(default_factory=dict)
    covered: frozenset[Name] = frozenset()
    followed: frozenset[Name] = frozenset()

    def copy(self) -> "Held":
        return Held({name: dict(facts) for name, facts in self.tasks.items()}, self.covered, self.followed)

    def take(self, event: Event) -> None:
        match event.WhichOneof("event"):
            case "started":
                self.followed = names_of(event.started.targets)
            case "targets_changed":
                self.followed = names_of(event.targets_changed.targets)
                self.covered &= self.followed
            case "reset":
                gone = names_of(event.reset.targets) or self.tasks.keys() | self.covered
                self.tasks = {name: facts for name, facts in self.tasks.items() if name not in gone}
                self.covered -= gone
            case "changes":
                for change in event.changes.changes:
                    facts = self.tasks.setdefault((change.task.account, change.task.region), {})
                    if change.type == REMOVED:
                        facts.pop(change.task.task_id, None)
                    else:
                        facts[change.task.task_id] = fact(change.task)
            case "snapshot_complete":
                self.covered |= names_of(event.snapshot_complete.targets)


def names_of(targets: Iterable[pb.Target]) -> frozenset[Name]:
    return frozenset((target.account, target.region) for target in targets)
