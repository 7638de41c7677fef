"""A follower's place in the revisions of its views.

A subscription is a selection and a revision. What it must be sent is whatever changed after it, in all
of its views, gathered at one moment into one group: catching up, resuming and conflating are the same
step, and nobody has a queue. What the follower held at its revision is computed from each changed
entry's own history.
"""

import asyncio
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import Error
from imagetasks_server.selection import Selection
from imagetasks_server.targets import Target
from imagetasks_server.ticks import Ticks
from imagetasks_server.tracked import Tracked
from imagetasks_server.view import Entry, Revisions

_ADDED: Final = pb.TaskChange.TYPE_ADDED
_MODIFIED: Final = pb.TaskChange.TYPE_MODIFIED
_REMOVED: Final = pb.TaskChange.TYPE_REMOVED
_NO_MATCH: Final = pb.TaskChange.REMOVAL_REASON_NO_MATCH
_ACCESS_ENDED: Final = pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED
_NOT_REMOVED: Final = pb.TaskChange.REMOVAL_REASON_UNSPECIFIED
# What of a task changes. Of one that may be seen no more, only the rest is told.
_STATE: Final = (
    "progress_percentage",
    "store_task_state",
    "ec2_store_task_state",
    "store_task_failure_reason",
    "pace",
)

# Tasks that make a group of snapshots large enough: the next targets come with the next group. More: fewer
# groups; less: others wait less while one is made, and it takes less memory.
ENOUGH: Final = 2_000


# What has moved: what is kept of the target, the account's name as asked, the revision seen last.
Place: TypeAlias = tuple[tuple[Tracked, str, int], ...]


class Change(NamedTuple):
    """One task's change, as a follower sees it.

    Attributes:
        type: What has become of it.
        task: Its newest state.
        reason: Why it is gone.
        read_at: Unix seconds at which the newest read began that tells of it.
    """

    type: "pb.TaskChange.Type.ValueType"
    task: pb.StoreImageTaskResult
    reason: "pb.TaskChange.RemovalReason.ValueType" = _NOT_REMOVED
    read_at: float = 0.0


@dataclass
class Group:
    """All that a follower must be told, as of one moment.

    Attributes:
        reset: Targets to forget first.
        changes: Oldest first.
        covered: Targets whose snapshots are complete with these changes.
        statuses: Targets that became stale, with the error, or recovered.
    """

    reset: list[Target] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    covered: list[Target] = field(default_factory=list)
    statuses: list[tuple["Followed", Error | None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reset or self.changes or self.covered or self.statuses)

    @functools.cached_property
    def began(self) -> float:
        """Unix seconds at which the oldest read began that saw one of the changes; there are some."""
        return min(change.read_at for change in self.changes)


@dataclass(slots=True, eq=False)
class Followed:
    """One target of a subscription.

    Attributes:
        target: Under the name it was asked by.
        tracked: What is kept of it.
        covered: Its snapshot has been gathered.
        told: The error the follower knows of.
        seen: The view's revision when its news was last gathered; None: not since the follower came.
    """

    target: Target
    tracked: Tracked
    covered: bool = False
    told: Error | None = None
    seen: int | None = None

    @property
    def has_status(self) -> bool:
        """Whether it has become stale, stale for another reason, or recovered since the follower was told."""
        error, told = self.tracked.reader.last_error, self.told
        return error is not told and (error and error.reason) != (told and told.reason)


class Subscription:
    """A selection, followed over its targets from one revision on. Must be closed.

    Args:
        selection: Which tasks.
        revisions: The process's counter.
        ticks: Wake it when its time is over.
        not_before: Unix seconds; a snapshot is of a state read then or later, or of the last good one
            of a target that cannot be read.
        revision: Where to go on; 0 begins with snapshots.

    Attributes:
        revision: The newest change that the follower knows of.
        uncovered: Targets whose snapshots have not been gathered.
        until: Seconds of the loop's time at which it wakes by itself.
    """

    def __init__(
        self,
        selection: Selection,
        revisions: Revisions,
        ticks: Ticks,
        *,
        not_before: float,
        revision: int = 0,
    ) -> None:
        self.revision = revision
        self.uncovered: set[Target] = set()
        self.until = 0.0
        self._ticks = ticks
        self._selection = selection
        self._revisions = revisions
        self._not_before = not_before
        self._followed: dict[Target, tuple[Followed, functools.partial[None]]] = {}
        # Whose view has moved since the last gathering.
        self._moved: dict[Followed, None] = {}
        # Kept: before Python 3.12 it is a call to the system to find it out.
        self._loop = asyncio.get_running_loop()
        self._is_awake = False
        self._sleep: asyncio.Future[None] | None = None
        self._rings_at: float | None = None

    @property
    def followed(self) -> list[Followed]:
        """All targets, in no order."""
        return [followed for followed, _ in self._followed.values()]

    def follow(self, target: Target, tracked: Tracked, *, covered: bool = False) -> None:
        """Follow one more target; `covered` if the follower holds its tasks as of `revision`."""
        followed = Followed(target, tracked, covered)
        if not covered:
            self.uncovered.add(target)
        listener = functools.partial(self._note, followed)
        self._followed[target] = (followed, listener)
        tracked.view.listeners.add(listener)
        tracked.poller.follow(self._not_before)
        self._moved[followed] = None
        self.wake()

    def unfollow(self, target: Target, lost: Group) -> None:
        """Follow it no longer; what the follower loses is added to a group."""
        followed, listener = self._followed.pop(target)
        followed.tracked.view.listeners.discard(listener)
        followed.tracked.poller.unfollow()
        self._moved.pop(followed, None)
        if not followed.covered:
            self.uncovered.discard(target)
            return
        if self.revision < followed.tracked.view.floor:
            # What the follower holds can no longer be told one by one.
            lost.reset.append(target)
            return
        lost.changes += [
            Change(_REMOVED, _identity(followed.target.named(entry.task)), _ACCESS_ENDED)
            for entry in followed.tracked.view.held_at(self.revision)
            if self._selection.matches(entry.task, state=entry.state_at(self.revision))
        ]

    def close(self) -> None:
        """Leave every view."""
        for followed, listener in self._followed.values():
            followed.tracked.view.listeners.discard(listener)
            followed.tracked.poller.unfollow()
        self._followed.clear()
        self._moved.clear()
        if self._rings_at is not None:
            self._ticks.leave(self, self._rings_at)

    def wake(self) -> None:
        """Let `moved` return."""
        if self._is_awake:
            return
        self._is_awake = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def moved(self, seconds: float) -> None:
        """Wait until something may have changed, or at most so long. It may also return without a reason."""
        until = self.until = self._loop.time() + seconds
        if self._rings_at is None or self._rings_at > until:
            if self._rings_at is not None:
                self._ticks.leave(self, self._rings_at)
            # Ringing early wakes nobody: joining another tick for each change would cost more than the rest.
            self._rings_at = self._ticks.join(self)
        if not self._is_awake:
            self._sleep = self._loop.create_future()
            await self._sleep
        self._is_awake = False

    def ring(self, at: float) -> None:
        """As a `Sleeper`."""
        if at + self._ticks.seconds <= self.until:
            self._rings_at = self._ticks.join(self)
        else:
            self._rings_at = None
            self.wake()

    @property
    def newest(self) -> int:
        """The newest change of all views: where a group gathered now leads to."""
        return self._revisions.last

    def place(self) -> Place | None:
        """What the next group depends on, beside the selection and the targets.

        Followers of one selection and the same targets are told the same group from the same place. None: it
        depends on more than that, as a snapshot does.
        """
        if self.uncovered:
            return None
        place = []
        for followed in self._moved:
            tracked, seen = followed.tracked, followed.seen
            if seen is None or self.revision < tracked.view.floor or followed.has_status:
                return None
            place.append((tracked, followed.target.account, seen))
        return tuple(place)

    def skip(self) -> None:
        """Take the next group as known: it was gathered by another follower at the same place."""
        for followed in self._moved:
            followed.seen = followed.tracked.view.revision
        self._moved.clear()
        self.revision = self._revisions.last

    def gather(self) -> Group:
        """Everything the follower does not know yet, as of now; it then counts as known."""
        group = Group()
        changes: list[tuple[int, Change]] = []
        moved, self._moved = self._moved, {}
        for followed in moved:
            view = followed.tracked.view
            if followed.covered and self.revision < view.floor:
                followed.covered = False
                self.uncovered.add(followed.target)
                group.reset.append(followed.target)
            if followed.covered:
                changes.extend(self._news(followed))
            elif not self._can_cover(followed):
                pass
            elif len(changes) >= ENOUGH:
                self._moved[followed] = None
                self.wake()
            else:
                followed.covered = True
                self.uncovered.discard(followed.target)
                group.covered.append(followed.target)
                changes.extend(
                    (entry.changed, self._change(followed, _ADDED, entry))
                    for entry in view.selected(self._selection)
                )
            if followed.has_status:
                followed.told = followed.tracked.reader.last_error
                group.statuses.append((followed, followed.told))
            followed.seen = view.revision
        changes.sort(key=lambda change: change[0])
        group.changes = [change for _, change in changes]
        self.revision = self._revisions.last
        return group

    def _note(self, followed: Followed) -> None:
        if followed not in self._moved:
            # A read that changed nothing wakes nobody.
            is_known = followed.covered and followed.tracked.view.revision <= self.revision
            if is_known and not followed.has_status:
                return
            self._moved[followed] = None
        if not self._is_awake:
            self.wake()

    def _can_cover(self, followed: Followed) -> bool:
        read_time = followed.tracked.view.read_time
        if read_time is None:
            return False
        return read_time >= self._not_before or followed.tracked.reader.last_error is not None

    def _news(self, followed: Followed) -> Iterable[tuple[int, Change]]:
        for entry in followed.tracked.view.changed_after(self.revision):
            held = entry.lived_at(self.revision) and self._selection.matches(
                entry.task, state=entry.state_at(self.revision)
            )
            if entry.removed is not None:
                if held:
                    yield entry.changed, self._change(followed, _REMOVED, entry, entry.removed)
            elif self._selection.matches(entry.task):
                yield entry.changed, self._change(followed, _MODIFIED if held else _ADDED, entry)
            elif held:
                yield entry.changed, self._change(followed, _REMOVED, entry, _NO_MATCH)

    def _change(
        self,
        followed: Followed,
        kind: "pb.TaskChange.Type.ValueType",
        entry: Entry,
        reason: "pb.TaskChange.RemovalReason.ValueType" = _NOT_REMOVED,
    ) -> Change:
        read_at = entry.listed_at if entry.removed is None else entry.removed_at
        return Change(kind, followed.target.named(entry.task), reason, read_at)


def _identity(task: pb.StoreImageTaskResult) -> pb.StoreImageTaskResult:
    identity = pb.StoreImageTaskResult()
    identity.CopyFrom(task)
    for name in _STATE:
        identity.ClearField(name)
    return identity
