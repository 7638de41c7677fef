"""What happened in one run: every state that a view had, and everything that each caller was told.

Validators judge it afterwards. Nothing here knows how the gateway comes to what it sends.
"""

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

from facts import Facts, Held, Name, fact
from rules import Rules
from told import Asked, Describe, Stream, Wait

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import Gateway
from imagetasks_server.view import View


class Snapshot(NamedTuple):
    """A view's state, from a revision on; `well`: the newest read has succeeded."""

    revision: int
    at: float
    read_time: float | None
    changed: int
    well: bool
    tasks: dict[str, pb.StoreImageTaskResult]


class Call(NamedTuple):
    """One call of EC2; `lists`: it begins a listing."""

    at: float
    process: int
    account_id: str
    region: str
    lists: bool


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
        rules: Of the gateway.
        streams: In order of opening.
        describes: In order of asking.
        waits: In order of asking.
        states: Per process and (account id, Region) the states of its views.
        ids: Account ids by name.
        there: From when on which targets there were.
        doubts: Accounts that could not be found out, from when to when.
        calls: Every call of EC2.
        begun: When which process began.
        rests: Moments of rest.
        drains: When which process was told to stop.
        killed: When which process was.
        truth: What EC2 listed at the end, when all had come to rest.
    """

    rules: Rules
    streams: list[Stream] = field(default_factory=list)
    describes: list[Describe] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    states: dict[tuple[int, str, str], list[Snapshot]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    there: list[tuple[float, frozenset[Name]]] = field(default_factory=list)
    doubts: dict[str, list[list[float]]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    begun: dict[int, float] = field(default_factory=dict)
    rests: list[Rest] = field(default_factory=list)
    drains: dict[int, float] = field(default_factory=dict)
    killed: dict[int, float] = field(default_factory=dict)
    truth: dict[Name, list[pb.StoreImageTaskResult]] = field(default_factory=dict)
    _revisions: dict[int, list[int]] = field(default_factory=dict)
    _turns: dict[Name, list[tuple[float, bool]]] = field(default_factory=dict)

    def view(self, stream: Stream, name: Name, revision: int) -> Facts:
        """What the stream's selection showed of a target as of a revision."""
        states = self.states.get((stream.process, self.ids[name[0]], name[1]), [])
        place = bisect.bisect_right(states, revision, key=lambda each: each.revision)
        tasks = states[place - 1].tasks if place else {}
        return {key: fact(task) for key, task in tasks.items() if stream.matches(task)}

    def known(self, process: int, name: Name, at: float) -> Snapshot | None:
        """What was known of a target at a moment; None: nothing."""
        states = self.states.get((process, self.ids[name[0]], name[1]), [])
        place = bisect.bisect_right(states, at, key=lambda each: each.at)
        return states[place - 1] if place else None

    def read_time(self, stream: Stream, name: Name, at: float) -> float:
        """When the newest read known at a moment began."""
        known = self.known(stream.process, name, at)
        return (known.read_time if known else None) or 0.0

    def revisions(self, process: int, since: int, until: int) -> list[int]:
        """All at which something was published, from one to another."""
        if process not in self._revisions:
            of_process = (states for (number, _, _), states in self.states.items() if number == process)
            self._revisions[process] = sorted({state.revision for states in of_process for state in states})
        found = self._revisions[process]
        return found[bisect.bisect_left(found, since) : bisect.bisect_right(found, until)]

    def asked(self) -> list[Asked]:
        """All that was asked once."""
        return [*self.describes, *self.waits]

    def names(self) -> list[Name]:
        """All targets that there ever were."""
        return sorted(frozenset[Name]().union(*(names for _, names in self.there)))

    def gone(self, name: Name, at: float) -> float | None:
        """Since when, without a break, a target has been no more, or not yet; None if it is there."""
        turns = self._turns_of(name)
        when, is_there = turns[bisect.bisect_right(turns, at, key=lambda each: each[0]) - 1]
        return None if is_there else when

    def came_or_went(self, name: Name, since: float, until: float) -> bool:
        """Whether a target did, or whether that could not be found out."""
        return any(since <= when <= until for when, _ in self._turns_of(name)[1:]) or any(
            begin <= until and since <= end for begin, end in self.doubts.get(name[0], [])
        )

    def compared(self, stream: Stream, held: Held, at: float) -> list[Name]:
        """The targets whose snapshot the client has, but for those that came or went just now."""
        return [name for name in sorted(held.covered) if self.steady(stream, name, at)]

    def steady(self, stream: Stream, name: Name, at: float) -> bool:
        """Whether a target is there and in sight, and has been for so long that the client must know."""
        if self.gone(name, at) is not None or stream.sight.lost(name, at) is not None:
            return False
        # What is read after a stall may have been on its way since before it.
        seen = stream.awake_since(at, within=0.0)
        found = stream.awake_since(at, within=self.rules.found_within) - self.rules.found_within
        return not stream.sight.changed(name, seen, at) and not self.came_or_went(name, found, at)

    def _turns_of(self, name: Name) -> list[tuple[float, bool]]:
        """When a target came and went, beginning with how it was at first."""
        if name not in self._turns:
            there = [(when, name in names) for when, names in self.there]
            self._turns[name] = there[:1] + [
                now for was, now in itertools.pairwise(there) if now[1] != was[1]
            ]
        return self._turns[name]


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
                well = tracked.reader.last_error is None
                newest = gateway.followers.revision
                states.append(Snapshot(newest, at, view.read_time, view.revision, well, tasks))
        publish(view)

    patch: Any = mock.patch.object(View, "publish", record)
    with patch:
        yield
