"""A watch as a state machine: messages and failures in, changes and pauses out. No I/O and no clock.

Both clients drive it: they open a call with `request`, hand over what arrives (`received`) or how it ended
(`interrupted`), and do what comes back. It holds what the gateway has shown, so that across a reset, and so
across a restart of the gateway, the application hears only what differs.

    ┌──────────┐ started  ┌───────────┐ message: changes for the application
    │ opening  │─────────▶│ following │───┐
    └──────────┘          └───────────┘◀──┘
      ▲      │ failed           │ closing, cut, silence
      │      ▼                  ▼
      │   ┌─────────────────────────┐ an error that stays
      └───│ interrupted: the pause  │────────────────────▶ raised
          └─────────────────────────┘
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from imagetasks.backoff import Backoff, is_passing
from imagetasks.errors import Error, OutOfRangeError, from_status
from imagetasks.v1 import store_image_tasks_pb2 as pb

ADDED: Final = pb.TaskChange.TYPE_ADDED
MODIFIED: Final = pb.TaskChange.TYPE_MODIFIED
REMOVED: Final = pb.TaskChange.TYPE_REMOVED

_ENDED: Final = (pb.STORE_TASK_STATE_COMPLETED, pb.STORE_TASK_STATE_FAILED)
_TOKEN_REFUSED: Final = "RESUME_TOKEN_INVALID"  # noqa: S105 - an ErrorReason

# Seconds until the first message. Before it the gateway may still be finding out the targets.
OPENING_SECONDS: Final = 60.0
# Heartbeats that may be missed before a connection counts as dead.
_MISSED_HEARTBEATS: Final = 3
# Seconds after which a stream has gone well: an end then is no sign of more to come.
_STEADY_SECONDS: Final = 10.0
# Ended tasks that were removed and are remembered, so that an older state cannot bring them back.
_REMEMBERED: Final = 4096

# Account and Region.
Place = tuple[str, str]


def has_ended(task: pb.StoreImageTaskResult) -> bool:
    """Whether the task's state is final."""
    return task.store_task_state in _ENDED


@dataclass(frozen=True, slots=True)
class Change:
    """One task's change, as the application sees it.

    Attributes:
        type: `TaskChange.TYPE_ADDED`, `TYPE_MODIFIED` or `TYPE_REMOVED`.
        task: The task now; when removed, its last known state.
        before: The task as the application knew it; None if it did not.
        removal_reason: Why it was removed. Unspecified if it had gone when the connection came back.
        is_first: It is among what was there when the watch of its target began: no news.
    """

    type: "pb.TaskChange.Type.ValueType"
    task: pb.StoreImageTaskResult
    before: pb.StoreImageTaskResult | None = None
    removal_reason: "pb.TaskChange.RemovalReason.ValueType" = pb.TaskChange.REMOVAL_REASON_UNSPECIFIED
    is_first: bool = False

    @property
    def has_ended(self) -> bool:
        """The task has ended, and this is the news of it."""
        return not self.is_first and has_ended(self.task) and not (self.before and has_ended(self.before))


@dataclass(frozen=True, slots=True)
class Stale:
    """A target that cannot be read now.

    Attributes:
        target: The target; of a whole account, whose Regions cannot be found out, the Region is empty.
        error: Why.
        read_time: Unix seconds at which the newest good read began; None: never.
    """

    target: pb.Target
    error: Error
    read_time: float | None


class Watched:
    """What a watch holds, and what it does next.

    Args:
        selector: Which tasks.
        backoff: The pauses between attempts.
    """

    def __init__(self, selector: pb.TaskSelector, backoff: Backoff | None = None) -> None:
        self._selector = selector
        self._backoff = backoff or Backoff()
        self._token = ""
        self._opened: float | None = None
        self._silence = OPENING_SECONDS
        self._tasks: dict[Place, dict[str, pb.StoreImageTaskResult]] = defaultdict(dict)
        # Ended tasks that are held no longer, oldest first.
        self._gone: dict[str, pb.StoreImageTaskResult] = {}
        # The gateway's targets; those whose tasks are held in full, now and as of the token; those ever held.
        self._targets: set[Place] = set()
        self._covered: set[Place] = set()
        self._covered_then: frozenset[Place] = frozenset()
        self._seen: set[Place] = set()
        self._stale: dict[Place, Stale] = {}
        # Of a group that has not ended, and of targets whose snapshot has not.
        self._group: list[pb.TaskChange] = []
        self._snapshots: dict[Place, dict[str, pb.StoreImageTaskResult]] = defaultdict(dict)

    @property
    def request(self) -> pb.WatchStoreImageTasksRequest:
        """What the next call asks."""
        return pb.WatchStoreImageTasksRequest(selector=self._selector, resume_token=self._token)

    @property
    def silence(self) -> float:
        """Seconds without a message after which the connection is dead."""
        return self._silence

    @property
    def is_live(self) -> bool:
        """A call runs, and its first message has come."""
        return self._opened is not None

    @property
    def is_caught_up(self) -> bool:
        """A call runs, and all targets are covered."""
        return self.is_live and self._targets <= self._covered

    @property
    def targets(self) -> frozenset[Place]:
        """Account and Region of each target that is followed."""
        return frozenset(self._targets)

    @property
    def covered(self) -> frozenset[Place]:
        """Account and Region of each target whose tasks are held in full."""
        return frozenset(self._covered)

    @property
    def stale(self) -> Mapping[Place, Stale]:
        """Targets that cannot be read now, by account and Region."""
        return MappingProxyType(self._stale)

    @property
    def tasks(self) -> dict[str, pb.StoreImageTaskResult]:
        """All tasks held, by task_id: what all changes so far amount to."""
        return {task_id: task for held in self._tasks.values() for task_id, task in held.items()}

    def received(self, message: pb.WatchStoreImageTasksResponse, now: float) -> list[Change]:
        """Takes a message; returns what it changes for the application.

        Args:
            message: The call's next.
            now: Seconds, of a clock that only goes forward.
        """
        changes: list[Change] = []
        match message.WhichOneof("event"):
            case "started":
                self._start(message.started, now)
            case "reset":
                self._reset(map(_place, message.reset.targets))
            case "changes":
                self._group.extend(message.changes.changes)
                if message.changes.continued:
                    return []
                changes = list(self._end_group(()))
            case "snapshot_complete":
                changes = list(self._end_group([_place(each) for each in message.snapshot_complete.targets]))
            case "target_status":
                self._note(message.target_status)
            case "targets_changed":
                self._follow(set(map(_place, message.targets_changed.targets)))
                changes = list(self._drop_unlisted())
            case "heartbeat":
                changes = list(self._drop_unlisted())
        # Not within a group: what is before the token would be lost.
        if message.resume_token and not self._group:
            self._token = message.resume_token
            self._covered_then = frozenset(self._covered)
        return changes

    def interrupted(self, error: Error | None, now: float) -> float:
        """The call has ended; returns the seconds until the next one.

        Args:
            error: How; None: closed by the gateway, cut, or silent for too long.
            now: As in `received`.

        Raises:
            Error: It is not one that passes.
        """
        self._group.clear()
        self._snapshots.clear()
        # A reset behind the token has not been: what was held is held, and the gateway repeats it if need be.
        self._covered = set(self._covered_then)
        if self._opened is not None and now - self._opened >= _STEADY_SECONDS:
            self._backoff.reset()
        self._opened = None
        self._silence = OPENING_SECONDS
        if error is not None and not is_passing(error):
            if not self._token or not (isinstance(error, OutOfRangeError) or error.reason == _TOKEN_REFUSED):
                raise error
            # Another gateway than the one that gave it: begin anew. What is held stays, to compare with.
            self._token = ""
        return self._backoff.pause(error)

    def _start(self, started: pb.WatchStoreImageTasksResponse.Started, now: float) -> None:
        self._opened = now
        heartbeat = started.heartbeat_interval.ToNanoseconds() / 1e9
        self._silence = _MISSED_HEARTBEATS * heartbeat if heartbeat > 0 else OPENING_SECONDS
        self._targets = set(map(_place, started.targets))
        # Told anew of those that still are.
        self._stale.clear()
        if not started.resumed:
            self._reset(())

    def _follow(self, targets: set[Place]) -> None:
        for gone in self._targets - targets:
            self._covered.discard(gone)
            self._snapshots.pop(gone, None)
            self._stale.pop(gone, None)
            # Should it come back, its tasks are no news.
            self._seen.discard(gone)
        self._targets = targets

    def _reset(self, places: Iterable[Place]) -> None:
        named = set(places)
        self._group.clear()
        for place in named or {*self._covered, *self._snapshots}:
            self._covered.discard(place)
            self._snapshots.pop(place, None)

    def _end_group(self, completed: Iterable[Place]) -> Iterator[Change]:
        """Applies the group at once, and the snapshots that are complete with it."""
        group, self._group = self._group, []
        completed = set(completed)
        for change in group:
            place = _place(change.task)
            if place in self._covered and place not in completed:
                yield from self._apply(place, change)
            elif change.type == REMOVED:
                self._snapshots[place].pop(change.task.task_id, None)
            else:
                self._snapshots[place][change.task.task_id] = change.task
        for place in sorted(completed):
            yield from self._replace(place, self._snapshots.pop(place, {}))
            self._targets.add(place)
            self._covered.add(place)
            self._seen.add(place)
            # Its account's Regions are known again.
            self._stale.pop((place[0], ""), None)

    def _apply(self, place: Place, change: pb.TaskChange) -> Iterator[Change]:
        if change.type == REMOVED:
            yield from self._remove(place, change.task, change.removal_reason)
            if change.removal_reason == pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED:
                # Should it come back, its tasks are no news.
                self._seen.discard(place)
        else:
            yield from self._put(place, change.task)

    def _replace(self, place: Place, snapshot: Mapping[str, pb.StoreImageTaskResult]) -> Iterator[Change]:
        for task_id, task in list(self._tasks[place].items()):
            if task_id not in snapshot:
                yield from self._remove(place, task)
        for task in snapshot.values():
            held = self._tasks[place].get(task.task_id)
            # A gateway that has just begun has not seen how fast it goes: that is no change of the task.
            if held is None or not _is_same(held, task):
                yield from self._put(place, task)

    def _put(self, place: Place, task: pb.StoreImageTaskResult) -> Iterator[Change]:
        held = self._tasks[place].get(task.task_id)
        known = held or self._gone.get(task.task_id)
        if known is not None and _goes_back(known, task):
            # A replica that has read EC2 less recently.
            return
        self._gone.pop(task.task_id, None)
        self._tasks[place][task.task_id] = task
        if held is None:
            yield Change(ADDED, task, known, is_first=place not in self._seen)
        elif held != task:
            yield Change(MODIFIED, task, held)

    def _remove(
        self,
        place: Place,
        last: pb.StoreImageTaskResult,
        reason: "pb.TaskChange.RemovalReason.ValueType" = pb.TaskChange.REMOVAL_REASON_UNSPECIFIED,
    ) -> Iterator[Change]:
        held = self._tasks[place].pop(last.task_id, None)
        if held is None:
            return
        # Of a task that may be seen no more the gateway tells no state.
        is_untold = reason == pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED
        task = held if is_untold or _goes_back(held, last) else last
        if has_ended(task):
            self._gone[task.task_id] = task
            if len(self._gone) > _REMEMBERED:
                self._gone.pop(next(iter(self._gone)))
        yield Change(REMOVED, task, held, reason)

    def _note(self, status: pb.WatchStoreImageTasksResponse.TargetStatus) -> None:
        place = _place(status.target)
        if status.HasField("status"):
            read = status.read_time.ToNanoseconds() / 1e9 if status.HasField("read_time") else None
            self._stale[place] = Stale(status.target, from_status(status.status), read)
        else:
            self._stale.pop(place, None)

    def _drop_unlisted(self) -> Iterator[Change]:
        """What is held of targets that are not followed any more."""
        for place in [place for place, held in self._tasks.items() if held and place not in self._targets]:
            # Where Regions cannot be found out, nothing is known of them.
            if (place[0], "") not in self._stale:
                for task in list(self._tasks[place].values()):
                    yield from self._remove(place, task, pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED)
                self._seen.discard(place)


def _goes_back(known: pb.StoreImageTaskResult, task: pb.StoreImageTaskResult) -> bool:
    """Whether the task is an older state of a known one: its end is final, and its percentage only rises."""
    if has_ended(known) or has_ended(task):
        return not has_ended(task)
    if known.ec2_store_task_state != task.ec2_store_task_state or not task.HasField("progress_percentage"):
        return False
    return task.progress_percentage < known.progress_percentage


def _is_same(one: pb.StoreImageTaskResult, other: pb.StoreImageTaskResult) -> bool:
    """Whether they differ in nothing but how the gateway saw them come along."""
    if one.HasField("pace") or other.HasField("pace"):
        copies = pb.StoreImageTaskResult(), pb.StoreImageTaskResult()
        for copy, task in zip(copies, (one, other), strict=True):
            copy.CopyFrom(task)
            copy.ClearField("pace")
        one, other = copies
    return one == other


def _place(named: pb.Target | pb.StoreImageTaskResult) -> Place:
    return named.account, named.region
