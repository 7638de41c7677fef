"""What one caller asked for, what he might see, and everything that he was told."""

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from facts import Event, Held, Mark, Matches, Name, mark_of

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.permission import Permission

_CHANGING = {"started", "changes", "reset", "snapshot_complete", "targets_changed"}


@dataclass
class Sight:
    """What a caller may see, over time.

    Attributes:
        decided: From when on which permission.
        expires: When the credential does.
        revoked: When it was declared void.
    """

    decided: list[tuple[float, Permission]]
    expires: float = math.inf
    revoked: float = math.inf

    def lost(self, name: Name, at: float) -> float | None:
        """Since when, without a break, a target has been out of sight; None if it is in sight."""
        since: float | None = None
        for when, permission in self.decided:
            if when <= at:
                since = None if permission.allows(*name) else when if since is None else since
        ended = min(self.expires, self.revoked)
        return since if at < ended else min(ended, since or ended)

    def settled(self, since: float) -> Permission | None:
        """The permission, if that has been the same from before a moment on, or from the beginning."""
        when, permission = self.decided[-1]
        return permission if when < since or len(self.decided) == 1 else None

    def changed(self, name: Name, since: float, until: float) -> bool:
        """Whether a target came into sight or out of it."""
        seen = [(when, permission.allows(*name)) for when, permission in self.decided]
        return any(
            since <= when <= until and now != before for (_, before), (when, now) in itertools.pairwise(seen)
        )


@dataclass
class Stream:
    """One watch.

    Attributes:
        subscriber: Whose.
        process: The gateway process, counted.
        opened: When.
        matches: The selector, told by a rule of the test's own.
        sight: What its caller may see.
        resumes: What kind of token it was opened with: "", "own", "future", "epoch", "damaged" or "other".
        requires: It was to be refused where that token means nothing.
        began_with: What the client held then.
        since: The revision of which that was, of a token of its own; else 0.
        given: When the token was.
        given_for: What its client might see then; None if that has just changed.
        events: What was received, when, and the newest revision at that moment.
        stalls: From when to when the client did not read.
        end: How it ended: "" while open, "left", "done", or an error's reason.
        ended: When.
        steps: What `replay` has made of it.
    """

    subscriber: int
    process: int
    opened: float
    matches: Matches
    sight: Sight
    resumes: str
    requires: bool
    began_with: Held
    since: int = 0
    given: float = 0.0
    given_for: Permission | None = None
    events: list[tuple[float, Event, int]] = field(default_factory=list)
    stalls: list[list[float]] = field(default_factory=list)
    end: str = ""
    ended: float | None = None
    steps: list["Step"] = field(default_factory=list)

    def stalled(self, begin: float, end: float) -> bool:
        """Whether the client did not read at some time between."""
        return any(a <= end and b >= begin for a, b in self.stalls)

    def read_since(self) -> float:
        """When it was opened, or the last stall was over."""
        return max([self.opened, *(end for _, end in self.stalls)])

    def awake_since(self, at: float, *, within: float) -> float:
        """A moment, or when the stall began that was over no longer ago than so many seconds before it."""
        return min([at, *(begin for begin, end in self.stalls if end >= at - within)])


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


@dataclass
class Asked:
    """A call that is answered once: a describe or a wait.

    Attributes:
        process: The gateway process, counted.
        began: When.
        ended: When; None while it runs.
        reason: Of the error it ended with; "left" if the caller did.
    """

    process: int
    began: float
    ended: float | None = field(default=None, kw_only=True)
    reason: str = field(default="", kw_only=True)


@dataclass
class Describe(Asked):
    """One describe of a target.

    Attributes:
        name: The target.
        max_age: Seconds that what it is told may be old; 0 demands a read.
        after: The last moment of rest before it, counted.
        tasks: What it was told.
        rest: The moment of rest in which a read told it that, counted; None if none did.
    """

    name: Name
    max_age: int
    after: int
    tasks: list[pb.StoreImageTaskResult] = field(default_factory=list)
    rest: int | None = None


@dataclass
class Wait(Asked):
    """One wait.

    Attributes:
        until: When its time is over.
        matches: The selector, told by a rule of the test's own.
        sight: What its caller may see.
        appear: That nothing matches was to be no answer.
        response: The answer.
        running: Targets with a task that EC2 listed as unfinished from the request to the answer.
    """

    until: float
    matches: Matches
    sight: Sight
    appear: bool
    response: pb.WaitStoreImageTasksResponse | None = None
    running: frozenset[Name] = frozenset()
