"""What is known of one target: its tasks, their numbered changes, when they were read.

Pure: no I/O, no clock of its own; every time comes with a read. Every change takes the next number
of one counter, the process's revision, so that changes of many views can be merged and "what changed
after R" is a question each view answers from the end of its own list.

A full read lists all of EC2's 31 days; a head read only the newest part of it, or some images.

Truth rules:

- a task that ended stays ended, and a percentage never gets smaller;
- a task absent from one full read is still there (EC2 is eventually consistent); it is removed when
  a second full read that started at least `confirm_after` later lacks it too, or when it is absent
  and older than the 31 days EC2 shows;
- a task that EC2 lists twice, because the list moved while it was read, counts once.

A task's message is never changed once it is here: callers may hold it. A read replaces even equal
messages by its own, so that the memory of old reads, which their messages share, is let go.
"""

import bisect
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.pace import Pace
from imagetasks_server.selection import Order, Selection, order_of, started_at

HISTORY_SECONDS: Final = 31 * 86400.0
# EC2 may list a task later than it started, by so much.
LATE_SECONDS: Final = 300.0

_ENDED: Final = frozenset({pb.STORE_TASK_STATE_COMPLETED, pb.STORE_TASK_STATE_FAILED})
_AGED_OUT: Final = pb.TaskChange.REMOVAL_REASON_AGED_OUT
_NOT_REPORTED: Final = pb.TaskChange.REMOVAL_REASON_NOT_REPORTED


@dataclass(slots=True, eq=False)
class Listing:
    """One read of EC2 on its way into a view, page by page.

    Attributes:
        started: Unix seconds at which the read began.
        full: It lists all of EC2's 31 days.
        listed: Ids of the tasks it has listed.
    """

    started: float
    full: bool = True
    listed: set[str] = field(default_factory=set)


class Revisions:
    """The process's counter of changes."""

    def __init__(self) -> None:
        self.last = 0

    def take(self) -> int:
        """The next number."""
        self.last += 1
        return self.last


@dataclass(slots=True, eq=False)
class Entry:
    """One task of a view.

    Attributes:
        task: Its newest state. The message is never changed, only replaced.
        order: Its place in a listing.
        created: Revision at which it appeared.
        changed: Revision of its last change.
        transitions: Each revision at which its state changed, with the state before.
        gaps: Each time it was removed and came back: the revisions of both.
        pace: How it comes along; None once it has ended.
        listed_at: Start of the newest read that listed it.
        absent_since: Start of the first full read in a row that lacked it.
        removed: Why it is a tombstone; None while it lives.
        removed_at: Start of the read that removed it.
        gone_at: Unix seconds at which it became a tombstone.
    """

    task: pb.StoreImageTaskResult
    order: Order
    created: int
    changed: int
    # Tuples: nearly all are empty, and share one.
    transitions: tuple[tuple[int, str], ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()
    pace: Pace | None = None
    listed_at: float = 0.0
    absent_since: float | None = None
    removed: "pb.TaskChange.RemovalReason.ValueType | None" = None
    removed_at: float = 0.0
    gone_at: float = 0.0

    @property
    def task_id(self) -> str:
        """The task's: one string wherever it is kept. Each look at the message's own makes another."""
        return self.order[2]

    def lived_at(self, revision: int) -> bool:
        """Whether it was listed as of a revision."""
        if self.created > revision or any(gone <= revision < back for gone, back in self.gaps):
            return False
        return self.removed is None or self.changed > revision

    def state_at(self, revision: int) -> str:
        """EC2's word for the task's state as it was at a revision not before `created`."""
        for changed, before in self.transitions:
            if changed > revision:
                return before
        return self.task.ec2_store_task_state


class View:
    """The tasks of one target.

    Attributes:
        read_time: Unix seconds at which the newest complete read started; None before the first. What
            EC2 knew then is known here, but for tasks that it dropped since the newest full read.
        full_read_time: The same of full reads.
        revision: Number of the newest change here; 0 before the first.
        floor: Changes up to this number may be incomplete: a tombstone was dropped. A place in the
            list before it cannot be continued.
        listeners: Called after each step of a read; they may only take note.
        states: How many living tasks are in which state.
        contradictions: How often EC2 changed a finished task, or listed one that head reads had to
            have seen.
        contradicted_at: Unix seconds at which that was seen last.
    """

    def __init__(
        self,
        revisions: Revisions,
        *,
        confirm_after: float = 5.0,
        stalled_after: float = 1800.0,
        keep_tombstones: int = 4096,
        keep_tombstones_for: float = 600.0,
    ) -> None:
        self.read_time: float | None = None
        self.full_read_time: float | None = None
        self.revision = 0
        # Of what a view of the same target knew before this one nothing is left. A number of its own:
        # whoever holds the newest state of that view holds nothing of this one.
        self.floor = revisions.take()
        self.listeners: set[Callable[[], None]] = set()
        self.contradictions = 0
        self.contradicted_at: float | None = None
        self._revisions = revisions
        self._confirm_after = confirm_after
        self._stalled_after = stalled_after
        self._keep_tombstones = keep_tombstones
        self._keep_tombstones_for = keep_tombstones_for
        # By task id, in order of the last change: a changed entry moves to the end.
        self._entries: dict[str, Entry] = {}
        self._tombstones = 0
        self.states: Counter[int] = Counter()
        self._listed: list[Entry] | None = []
        self._newest: dict[str, Entry] | None = {}
        self._unfinished: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries) - self._tombstones

    @property
    def in_progress(self) -> int:
        """How many tasks have not ended, those in a state unknown to us included."""
        return len(self._unfinished)

    def listed(self) -> list[Entry]:
        """The living tasks, newest first. Not to be changed."""
        if self._listed is None:
            living = (entry for entry in self._entries.values() if entry.removed is None)
            self._listed = sorted(living, key=_order)
        return self._listed

    def unfinished(self) -> list[Entry]:
        """The living tasks that have not ended, newest first."""
        return sorted(self._unfinished.values(), key=_order)

    def above(self, place: Order) -> int:
        """How many living tasks are listed down to a place, the one there included."""
        return bisect.bisect_right(self.listed(), place, key=_order)

    def is_newest_of_image(self, entry: Entry) -> bool:
        """Whether EC2, asked for the task's AMI, answers with this task."""
        if self._newest is None:
            self._newest = {each.task.ami_id: each for each in reversed(self.listed())}
        return self._newest.get(entry.task.ami_id) is entry

    def selected(self, selection: Selection, after: Order | None = None) -> Iterator[Entry]:
        """The living tasks that are meant, newest first, from behind a place in the order."""
        entries = self.listed()
        if selection.newest_only:
            # An older task of an AMI never counts, wherever the listing goes on.
            newest = {
                entry.task.ami_id: entry for entry in reversed(entries) if selection.matches(entry.task)
            }
            chosen = sorted(newest.values(), key=_order)
            return iter(chosen[_place(chosen, after) :])
        start = _place(entries, after)
        return (entry for entry in itertools.islice(entries, start, None) if selection.matches(entry.task))

    def changed_after(self, revision: int) -> list[Entry]:
        """Entries whose last change came after `revision`, tombstones included, oldest first."""
        changes = []
        for entry in reversed(self._entries.values()):
            if entry.changed <= revision:
                break
            changes.append(entry)
        changes.reverse()
        return changes

    def held_at(self, revision: int) -> list[Entry]:
        """The tasks that were listed as of a revision not below `floor`."""
        return [entry for entry in self._entries.values() if entry.lived_at(revision)]

    def apply(self, listing: Listing, tasks: Iterable[pb.StoreImageTaskResult], at: float) -> list[Entry]:
        """Apply a page of a read that came at so many Unix seconds, not before any other page.

        Returns its entries as EC2 listed them, each once in the whole read.
        """
        entries = []
        for task in tasks:
            entry = self._apply(task, listing, at)
            # Listed again because the list moved meanwhile: perhaps newer, never a second row.
            if entry.task_id not in listing.listed:
                listing.listed.add(entry.task_id)
                entries.append(entry)
        self.publish()
        return entries

    def finish(self, listing: Listing, at: float) -> None:
        """The read has listed all it had to, by so many Unix seconds. A full one also tells what is gone."""
        if listing.full:
            self._miss(listing, at)
            self._bury(at)
            self.full_read_time = max(listing.started, self.full_read_time or listing.started)
        self.read_time = max(listing.started, self.read_time or listing.started)
        self.publish()

    def publish(self) -> None:
        """Tell the listeners that something has changed, here or with the target."""
        for listener in self.listeners:
            listener()

    def _apply(self, task: pb.StoreImageTaskResult, listing: Listing, at: float) -> Entry:
        entry = self._entries.get(task.task_id)
        if entry is None:
            return self._add(task, listing, at)
        is_back = entry.removed is not None
        if is_back:
            self._revive(entry)
        entry.absent_since = None
        entry.listed_at = max(entry.listed_at, listing.started)
        kept = entry.task
        if kept.store_task_state in _ENDED:
            if task == kept:
                entry.task = task
                return entry
            self._contradict(at)
            if task.store_task_state not in _ENDED:
                return entry
        newer = _never_back(kept, task)
        self._keep_pace(entry, newer, at, is_news=is_back)
        if newer == kept:
            entry.task = newer
        else:
            self._change(entry, newer)
        return entry

    def _add(self, task: pb.StoreImageTaskResult, listing: Listing, at: float) -> Entry:
        self.revision = self._revisions.take()
        entry = Entry(
            task=task,
            order=order_of(task),
            created=self.revision,
            changed=self.revision,
            listed_at=listing.started,
        )
        self._keep_pace(entry, task, at, is_news=True)
        if self.read_time is not None and entry.order > started_at(self.read_time - LATE_SECONDS):
            self._contradict(at)
        self._entries[entry.task_id] = entry
        self.states[task.store_task_state] += 1
        if task.store_task_state not in _ENDED:
            self._unfinished[entry.task_id] = entry
        self._listed = self._newest = None
        return entry

    def _revive(self, entry: Entry) -> None:
        gone = entry.changed
        self._touch(entry)
        entry.gaps = (*entry.gaps, (gone, entry.changed))
        entry.removed = None
        self._tombstones -= 1
        self.states[entry.task.store_task_state] += 1
        if entry.task.store_task_state not in _ENDED:
            self._unfinished[entry.task_id] = entry
        self._listed = self._newest = None

    def _keep_pace(self, entry: Entry, task: pb.StoreImageTaskResult, at: float, *, is_news: bool) -> None:
        """Put the task's pace on its message, which nobody has seen yet; a new one only with other news."""
        if task.store_task_state in _ENDED or not task.HasField("progress_percentage"):
            entry.pace = None
            return
        if entry.pace is None:
            entry.pace, is_news = Pace(task.progress_percentage, at, _start_of(task)), True
        rose = entry.pace.see(task.progress_percentage, at)
        stalls = entry.pace.stall(at, self._stalled_after)
        task.pace.CopyFrom(entry.task.pace)
        if is_news or rose or stalls or task != entry.task:
            task.pace.CopyFrom(entry.pace.message(at))

    def _contradict(self, at: float) -> None:
        self.contradictions += 1
        self.contradicted_at = at

    def _change(self, entry: Entry, task: pb.StoreImageTaskResult) -> None:
        self._touch(entry)
        before, after = entry.task.ec2_store_task_state, task.ec2_store_task_state
        self.states[entry.task.store_task_state] -= 1
        self.states[task.store_task_state] += 1
        if before != after:
            entry.transitions = (*entry.transitions, (entry.changed, before))
        if task.store_task_state in _ENDED:
            self._unfinished.pop(entry.task_id, None)
        else:
            self._unfinished[entry.task_id] = entry
        entry.task = task

    def _touch(self, entry: Entry) -> None:
        self.revision = entry.changed = self._revisions.take()
        self._entries[entry.task_id] = self._entries.pop(entry.task_id)

    def _miss(self, listing: Listing, at: float) -> None:
        # A read that runs slowly is no witness against what a later one has listed.
        missing = [e for e in self._entries.values() if e.removed is None and e.listed_at < listing.started]
        for entry in missing:
            if entry.absent_since is None:
                entry.absent_since = listing.started
            if _is_older_than_history(entry.task, listing.started):
                self._remove(entry, _AGED_OUT, listing, at)
            elif listing.started - entry.absent_since >= self._confirm_after:
                self._remove(entry, _NOT_REPORTED, listing, at)

    def _remove(
        self, entry: Entry, reason: "pb.TaskChange.RemovalReason.ValueType", listing: Listing, at: float
    ) -> None:
        self._touch(entry)
        entry.removed, entry.removed_at, entry.gone_at = reason, listing.started, at
        self._unfinished.pop(entry.task_id, None)
        self.states[entry.task.store_task_state] -= 1
        self._tombstones += 1
        self._listed = self._newest = None

    def _bury(self, now: float) -> None:
        """Drop the oldest tombstones: those past their time, and what is above the number kept."""
        if not self._tombstones:
            return
        dead = [key for key, entry in self._entries.items() if entry.removed is not None]
        for key in dead:
            entry = self._entries[key]
            expired = now - entry.gone_at >= self._keep_tombstones_for
            if not expired and self._tombstones <= self._keep_tombstones:
                break
            del self._entries[key]
            self._tombstones -= 1
            self.floor = entry.changed


_order = operator.attrgetter("order")


def _place(entries: list[Entry], after: Order | None) -> int:
    return 0 if after is None else bisect.bisect_right(entries, after, key=_order)


def _never_back(kept: pb.StoreImageTaskResult, task: pb.StoreImageTaskResult) -> pb.StoreImageTaskResult:
    """The newer state, unless it goes back."""
    if not kept.HasField("progress_percentage"):
        return task
    if task.HasField("progress_percentage"):
        if task.progress_percentage >= kept.progress_percentage:
            return task
    elif task.store_task_state in _ENDED:
        return task
    # An older percentage came late, or none: the rest of the news counts.
    merged = pb.StoreImageTaskResult()
    merged.CopyFrom(task)
    merged.progress_percentage = kept.progress_percentage
    return merged


def _start_of(task: pb.StoreImageTaskResult) -> float | None:
    """Unix seconds."""
    return task.task_start_time.ToMicroseconds() / 1e6 if task.HasField("task_start_time") else None


def _is_older_than_history(task: pb.StoreImageTaskResult, now: float) -> bool:
    return task.HasField("task_start_time") and task.task_start_time.seconds < now - HISTORY_SECONDS
