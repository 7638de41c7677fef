"""What happened in one run: every state that a view had, and everything that each subscriber received.

Validators judge it afterwards. Nothing here knows how the gateway comes to what it sends.
"""

import bisect
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import tokens
from imagetasks_server.assembly import Gateway
from imagetasks_server.view import View

Event = pb.WatchStoreImageTasksResponse
REMOVED = pb.TaskChange.TYPE_REMOVED
_CHANGING = {"changes", "reset", "snapshot_complete"}
# A target as subscribers name it: account, Region.
Name = tuple[str, str]


class Fact(NamedTuple):
    """What is compared of a task."""

    word: str
    percentage: int
    reason: str
    stalled: bool

    @property
    def ended(self) -> bool:
        return self.word in {"Completed", "Failed"}


Facts = dict[str, Fact]


def fact(task: pb.StoreImageTaskResult) -> Fact:
    return Fact(
        task.ec2_store_task_state,
        task.progress_percentage,
        task.store_task_failure_reason,
        task.pace.stalled,
    )


class Snapshot(NamedTuple):
    """A view's state, from a revision on."""

    revision: int
    at: float
    read_time: float | None
    changed: int
    tasks: dict[str, pb.StoreImageTaskResult]


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
    """What a client holds, and of which targets the snapshot is complete."""

    tasks: dict[Name, Facts] = field(default_factory=dict)
    covered: frozenset[Name] = frozenset()

    def copy(self) -> "Held":
        return Held({name: dict(facts) for name, facts in self.tasks.items()}, self.covered)

    def take(self, event: Event) -> None:
        if event.HasField("reset"):
            gone = {(t.account, t.region) for t in event.reset.targets} or set(self.tasks) | self.covered
            self.tasks = {name: facts for name, facts in self.tasks.items() if name not in gone}
            self.covered -= gone
        for change in event.changes.changes:
            facts = self.tasks.setdefault((change.task.account, change.task.region), {})
            if change.type == REMOVED:
                facts.pop(change.task.task_id, None)
            else:
                facts[change.task.task_id] = fact(change.task)
        self.covered |= {(t.account, t.region) for t in event.snapshot_complete.targets}


@dataclass
class Stream:
    """One watch.

    Attributes:
        subscriber: Whose.
        process: The gateway process, counted.
        opened: When.
        matches: The selector, told by a rule of the test's own.
        resumes: What kind of token it was opened with: "", "own", "future", "epoch", "damaged" or "other".
        began_with: What the client held then.
        since: The revision of which that was, of a token of its own; else 0.
        events: What was received, when, and the newest revision at that moment.
        stalls: From when to when the client did not read.
        end: How it ended: "" while open, "left", "done", or an error's reason.
        ended: When.
        steps: What `replay` has made of it.
    """

    subscriber: int
    process: int
    opened: float
    matches: Callable[[pb.StoreImageTaskResult], bool]
    resumes: str
    began_with: Held
    since: int = 0
    events: list[tuple[float, Event, int]] = field(default_factory=list)
    stalls: list[list[float]] = field(default_factory=list)
    end: str = ""
    ended: float | None = None
    steps: list["Step"] = field(default_factory=list)

    def stalled(self, begin: float, end: float) -> bool:
        """Whether the client did not read at some time between."""
        return any(a <= end and b >= begin for a, b in self.stalls)


class Step(NamedTuple):
    """One event received, and what the client held before and after it."""

    at: float
    event: Event
    newest: int
    before: Held
    after: Held

    @property
    def mark(self) -> Mark | None:
        return mark_of(self.event.resume_token) if self.event.resume_token else None


def replay(stream: Stream) -> list[Step]:
    """Every event with what was held; a stream is replayed once."""
    while len(stream.steps) < len(stream.events):
        before = stream.steps[-1].after if stream.steps else stream.began_with
        at, event, newest = stream.events[len(stream.steps)]
        # What does not change is shared.
        after = before.copy() if event.WhichOneof("event") in _CHANGING else before
        after.take(event)
        stream.steps.append(Step(at, event, newest, before, after))
    return stream.steps


class Rest(NamedTuple):
    """A moment at which everything had run that could run without time passing.

    `reading` has each stream that was open and read: its number, and how many events it had got.
    """

    at: float
    process: int
    revision: int
    reading: tuple[tuple[int, int], ...]


@dataclass
class History:
    """All of it.

    Attributes:
        heartbeat: As configured.
        busy: Likewise.
        linger: Likewise.
        fresh_within: A target that can be read is read at least so often.
        streams: In order of opening.
        states: Per process and (account id, Region) the states of its views.
        ids: Account ids by name.
        policy: From when on which accounts there were.
        calls: When which (account id, Region) began to be listed, and in which process.
        rests: Moments of rest.
        drains: When which process was told to stop.
        truth: What EC2 listed at the end, when all had come to rest.
    """

    heartbeat: float
    busy: float
    linger: float
    fresh_within: float
    streams: list[Stream] = field(default_factory=list)
    states: dict[tuple[int, str, str], list[Snapshot]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    policy: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    calls: list[tuple[float, int, str, str]] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    drains: dict[int, float] = field(default_factory=dict)
    truth: dict[Name, list[pb.StoreImageTaskResult]] = field(default_factory=dict)
    _revisions: dict[int, list[int]] = field(default_factory=dict)

    def view(self, stream: Stream, name: Name, revision: int) -> Facts:
        """What the stream's selection showed of a target as of a revision."""
        states = self.states.get((stream.process, self.ids[name[0]], name[1]), [])
        place = bisect.bisect_right(states, revision, key=lambda each: each.revision)
        tasks = states[place - 1].tasks if place else {}
        return {key: fact(task) for key, task in tasks.items() if stream.matches(task)}

    def read_time(self, stream: Stream, name: Name, at: float) -> float:
        """When the newest read known at a moment began."""
        states = self.states.get((stream.process, self.ids[name[0]], name[1]), [])
        place = bisect.bisect_right(states, at, key=lambda each: each.at)
        return (states[place - 1].read_time or 0.0) if place else 0.0

    def revisions(self, process: int, since: int, until: int) -> list[int]:
        """All at which something was published, from one to another."""
        if process not in self._revisions:
            of_process = (states for (number, _, _), states in self.states.items() if number == process)
            self._revisions[process] = sorted({state.revision for states in of_process for state in states})
        found = self._revisions[process]
        return found[bisect.bisect_left(found, since) : bisect.bisect_right(found, until)]

    def compared(self, stream: Stream, held: Held, at: float) -> list[Name]:
        """The targets whose snapshot the client has, but for accounts that came or went just now."""
        return [name for name in sorted(held.covered) if self.steady(stream, name[0], at)]

    def steady(self, stream: Stream, account: str, at: float) -> bool:
        """Whether the account was there and had been for long enough to be followed."""
        since = at - 3 * self.heartbeat
        # What is read after a stall may have been on its way since before it.
        since = min([since, *(begin - 3 * self.heartbeat for begin, end in stream.stalls if end >= since)])
        there = [account in names for when, names in self.policy if when <= at]
        changed = [when for when, _ in self.policy[1:] if since <= when <= at]
        return bool(there) and there[-1] and not changed


@contextlib.contextmanager
def recorded(history: History, now: Callable[[], tuple[float, int, Gateway]]) -> Iterator[None]:
    """Record every state of every view. `now` tells the time, the process and its gateway."""
    publish = View.publish

    def record(view: View) -> None:
        at, process, gateway = now()
        for key, tracked in gateway.registry._tracked.items():
            if tracked.view is view:
                states = history.states.setdefault((process, key.account_id, key.region), [])
                if states and states[-1].changed == view.revision:
                    tasks = states[-1].tasks
                else:
                    tasks = {entry.task.task_id: entry.task for entry in view.listed()}
                states.append(Snapshot(gateway.followers.revision, at, view.read_time, view.revision, tasks))
        publish(view)

    patch: Any = mock.patch.object(View, "publish", record)
    with patch:
        yield
