"""Faults seeded into the server's own code, each with the validator that must catch it."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final
from unittest import mock

import of_changes
import of_reads
import of_streams
from history import History

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import follow, waiting
from imagetasks_server.access import Access
from imagetasks_server.answers import Answers
from imagetasks_server.follow import Change, Followed, Group, Subscription
from imagetasks_server.line import Line, Response
from imagetasks_server.poller import Poller
from imagetasks_server.upstream import Upstream
from imagetasks_server.view import Entry
from imagetasks_server.waiting import Waiting
from imagetasks_server.watching import Watching

ENDED: Final = {pb.STORE_TASK_STATE_COMPLETED, pb.STORE_TASK_STATE_FAILED}


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: What it does wrong.
        validator: Who catches it.
        owner: Where it is seeded.
        method: The method or function that it replaces.
        make: From the method to the faulty one.
    """

    name: str
    validator: Callable[[History], Iterable[str]]
    owner: type | ModuleType
    method: str
    make: Callable[[Any], Any]

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        with mock.patch.object(self.owner, self.method, self.make(getattr(self.owner, self.method))):
            yield


def progress_ahead_of_events(token: Any) -> Any:
    def ahead(line: Any) -> Any:
        line._subscription.revision += 1
        try:
            return token(line)
        finally:
            line._subscription.revision -= 1

    return ahead


def back_in_time(change: Any) -> Any:
    older: dict[str, Any] = {}

    def changed(self: Any, followed: Followed, kind: Any, entry: Entry, *reason: Any) -> Change:
        made: Change = change(self, followed, kind, entry, *reason)
        before = older.setdefault(made.task.task_id, made.task)
        return Change(made.type, before, made.reason) if entry.changed % 2 else made

    return changed


def duplicates_after_resume(init: Any) -> Any:
    def begin(self: Any, *args: Any, revision: int = 0, **more: Any) -> None:
        init(self, *args, revision=max(0, revision - 3), **more)

    return begin


def without(lost: Callable[[Change], bool]) -> Any:
    def make(news: Any) -> Any:
        def some(self: Any, followed: Followed) -> Any:
            return [(number, change) for number, change in news(self, followed) if not lost(change)]

        return some

    return make


def half_a_group(gather: Any) -> Any:
    def half(self: Any) -> Group:
        group: Group = gather(self)
        if len(group.changes) > 1 and not group.covered:
            group.changes = group.changes[::2]
        return group

    return half


def token_from_the_future(covered: Any) -> Any:
    def taken(self: Any, token: Any, resolution: Any) -> Any:
        with mock.patch.object(type(self._followers), "revision", 1 << 60):
            return covered(self, token, resolution)

    return taken


def heartbeat_too_early(messages: Any) -> Any:
    def early(self: Any, group: Group) -> Iterator[Response]:
        if group.changes and not group.covered:
            yield self.heartbeat()
        yield from messages(self, group)

    return early


def nothing_said(gather: Any) -> Any:
    def quiet(self: Any) -> Group:
        group: Group = gather(self)
        group.statuses = []
        return group

    return quiet


def late_for_all(moved: Any) -> Any:
    async def late(self: Any, seconds: float) -> None:
        before = self._is_awake
        await moved(self, seconds)
        if self._moved and not before:
            await moved(self, 3.0)

    return late


def one_place_for_all(place: Any) -> Any:
    def anywhere(self: Any) -> Any:
        where = place(self)
        return where and tuple((tracked, account, 0) for tracked, account, _ in where)

    return anywhere


def too_often(due: Any) -> Any:
    return lambda self: due(self) - 2.0


def for_nobody(unfollow: Any) -> Any:
    del unfollow
    return lambda _: None


def no_goodbye(closing: Any) -> Any:
    del closing
    return lambda self, _: self.heartbeat()


def nothing_taken_back(unfollow: Any) -> Any:
    def keep(self: Any, target: Any, lost: Group) -> None:
        unfollow(self, target, Group())
        del lost

    return keep


def always(answer: object) -> Any:
    return lambda _: lambda *_, **__: answer


def whatever_has_gone(goes_on: Any) -> Any:
    del goes_on

    def is_known(self: Any, token: Any, covered: Any) -> bool:
        del self, token
        return covered is not None

    return is_known


def no_word_of_it(retarget: Any) -> Any:
    def silent(*args: Any) -> Iterator[Response]:
        return (each for each in retarget(*args) if not each.HasField("targets_changed"))

    return silent


def reads_of_its_own(init: Any) -> Any:
    def apart(self: Any, registry: Any, *args: Any, **more: Any) -> None:
        own = copy.copy(registry)
        own._tracked, own._used = {}, {}
        init(self, own, *args, **more)

    return apart


def unpaid(pay: Any) -> Any:
    del pay

    async def free(self: Any, **_: Any) -> None:
        del self

    return free


def never_expires(init: Any) -> Any:
    def lasting(self: Any, *args: Any, expires: float = 0.0, **more: Any) -> None:
        del expires
        init(self, *args, expires=math.inf, **more)

    return lasting


MUTANTS: Final = (
    Mutant("progress ahead of events", of_changes.bookmarkable, Line, "_token", progress_ahead_of_events),
    Mutant("going back in time", of_changes.ordered, Subscription, "_change", back_in_time),
    Mutant("duplicates after resume", of_changes.unique, Subscription, "__init__", duplicates_after_resume),
    Mutant(
        "a lost ended task",
        of_changes.reliable,
        Subscription,
        "_news",
        without(lambda change: change.task.store_task_state in ENDED),
    ),
    Mutant(
        "a lost removal",
        of_changes.removals,
        Subscription,
        "_news",
        without(lambda change: change.type == pb.TaskChange.TYPE_REMOVED),
    ),
    Mutant("a group that never existed", of_changes.atomic, Subscription, "gather", half_a_group),
    Mutant("a token from the future", of_streams.resumable, Watching, "_covered", token_from_the_future),
    Mutant("a heartbeat too early", of_changes.heartbeats, Line, "messages", heartbeat_too_early),
    Mutant("a stale target nobody tells of", of_reads.fresh, Subscription, "gather", nothing_said),
    Mutant("news of another place", of_changes.atomic, Subscription, "place", one_place_for_all),
    Mutant("news that wait", of_reads.isolated, Subscription, "moved", late_for_all),
    Mutant("reads too often", of_reads.economical, Poller, "_due", too_often),
    Mutant("reads for nobody", of_reads.economical, Poller, "unfollow", for_nobody),
    Mutant("an end without a goodbye", of_streams.cleanly_ended, Line, "closing", no_goodbye),
    Mutant("an ended access kept", of_streams.walled, Subscription, "unfollow", nothing_taken_back),
    Mutant("told until the next heartbeat", of_streams.walled, Access, "_tell", always(None)),
    Mutant(
        "a last word from behind the wall",
        of_streams.walled,
        follow,
        "_identity",
        lambda _: lambda task: task,
    ),
    Mutant("a wait that looks over the wall", of_reads.waited, Waiting, "_retarget", always(None)),
    Mutant("a credential without end", of_streams.cleanly_ended, Access, "__init__", never_expires),
    Mutant(
        "a goodbye for another reason",
        of_streams.cleanly_ended,
        Watching,
        "_goodbye",
        always(Response.Closing.REASON_MAX_AGE),
    ),
    Mutant("targets that change in silence", of_streams.aware, Line, "retarget", no_word_of_it),
    Mutant("a reset instead of a refusal", of_streams.required, Watching, "_goes_on", always(True)),
    Mutant("a floor that is overlooked", of_streams.required, Watching, "_goes_on", whatever_has_gone),
    Mutant("a refusal for no reason", of_streams.required, Watching, "_goes_on", always(False)),
    Mutant("a read kept to itself", of_reads.shared, Answers, "__init__", reads_of_its_own),
    Mutant("an answer of its own", of_reads.abreast, Answers, "__init__", reads_of_its_own),
    Mutant("calls that nobody paid for", of_reads.economical, Upstream, "pay", unpaid),
    Mutant("done by what was read before", of_reads.waited, waiting, "_is_read", always(True)),
    Mutant("done while something runs", of_reads.waited, waiting, "_runs", always(False)),
    Mutant("a wait without end", of_reads.waited, waiting, "_is_read", always(False)),
)
