"""Watches through random histories: whatever is cut, reset or repeated, the application's view converges."""

import random
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_gateway import task
from watch_events import ENDED, Event, change, complete, group, heartbeat, reset, started

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watching import ADDED, REMOVED, Change, Watched, has_ended

REGIONS = ("eu-central-1", "us-east-1")
STEPS = ("happen", "happen", "forget", "restart", "fall_behind", "cut", "behind", "all")
Tasks = dict[str, pb.StoreImageTaskResult]


class Gateway:
    """EC2's truth, and processes that serve it: each remembers what it has sent, by token."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.truth: Tasks = {}
        self._older: Tasks = {}
        self._epoch = 0
        self._sent: dict[str, tuple[Tasks, frozenset[str]]] = {}
        self._count = 0
        self._forgotten: set[str] = set()

    def happen(self) -> None:
        """Something at EC2."""
        number = self._dice.randrange(40)
        name = f"task-{number}"
        if name in self._forgotten:
            return
        known = self.truth.get(name)
        if known is None:
            self.truth[name] = task(REGIONS[number % 2], number, progress_percentage=self._dice.randrange(50))
        elif has_ended(known):
            return
        elif self._dice.random() < 0.4:
            ended = pb.StoreImageTaskResult()
            ended.CopyFrom(known)
            ended.MergeFrom(pb.StoreImageTaskResult(**ENDED))
            self.truth[name] = ended
        else:
            moved = pb.StoreImageTaskResult()
            moved.CopyFrom(known)
            moved.progress_percentage += self._dice.randrange(1, 5)
            self.truth[name] = moved

    def forget(self) -> None:
        """EC2 no longer lists a task that has ended; nor will it again."""
        for name, known in list(self.truth.items()):
            if has_ended(known):
                del self.truth[name]
                self._forgotten.add(name)
                self._older.pop(name, None)
                return

    def restart(self) -> None:
        """Another process."""
        self._epoch += 1

    def fall_behind(self) -> None:
        """What a replica has read that reads no more for a while."""
        self._older = dict(self.truth)

    def serve(self, token: str, *, behind: bool = False) -> Iterator[Event]:
        """A watch: what a caller gets, who may leave at any message."""
        seen = self._older if behind else self.truth
        held, covered = self._sent.get(token, ({}, frozenset()))
        resumed = token.startswith(f"{self._epoch}:")
        yield started(*REGIONS, resumed=resumed)
        if not resumed:
            held, covered = {}, frozenset()
            if token:
                yield reset()
        elif len(covered) < len(REGIONS):
            yield reset(*(set(REGIONS) - covered))
            held = {name: each for name, each in held.items() if each.region in covered}
        held = dict(held)
        regions = list(REGIONS)
        self._dice.shuffle(regions)
        for region in regions:
            now = {name: each for name, each in seen.items() if each.region == region}
            changes = list(_differences({n: e for n, e in held.items() if e.region == region}, now))
            held = {name: each for name, each in held.items() if each.region != region} | now
            covers = region not in covered
            covered |= {region}
            yield from self._group(changes, held, covered, region if covers else "")
        if self._dice.random() < 0.3:
            # Again, as after a floor was passed.
            covered -= {REGIONS[0]}
            yield reset(REGIONS[0])
            again = [change("ADDED", each) for each in held.values() if each.region == REGIONS[0]]
            covered |= {REGIONS[0]}
            yield from self._group(again, held, covered, REGIONS[0])
        yield heartbeat(self._token(held, covered))

    def _group(
        self, changes: list[pb.TaskChange], held: Tasks, covered: frozenset[str], completed: str
    ) -> Iterator[Event]:
        while len(changes) > 1 and self._dice.random() < 0.6:
            cut = self._dice.randrange(1, len(changes))
            yield group(None, *changes[:cut])
            changes = changes[cut:]
        if completed:
            if changes:
                yield group(None, *changes)
            yield complete(self._token(held, covered), completed)
        elif changes:
            yield group(self._token(held, covered), *changes)

    def _token(self, held: Tasks, covered: frozenset[str]) -> str:
        self._count += 1
        token = f"{self._epoch}:{self._count}"
        self._sent[token] = (dict(held), covered)
        return token


def _differences(before: Tasks, after: Tasks) -> Iterator[pb.TaskChange]:
    for name in before.keys() - after.keys():
        yield change("REMOVED", before[name], "AGED_OUT")
    for name, each in after.items():
        if name not in before:
            yield change("ADDED", each)
        elif before[name] != each:
            yield change("MODIFIED", each)


class Application:
    """What it has been told, and what must hold of that."""

    def __init__(self) -> None:
        self.watched = Watched(pb.TaskSelector())
        self.held: Tasks = {}
        self.ends: list[str] = []
        self._over: set[str] = set()

    def take(self, message: Event, now: float) -> None:
        for told in self.watched.received(message, now):
            self._apply(told)
        assert self.held == self.watched.tasks

    def _apply(self, told: Change) -> None:
        name = told.task.task_id
        if told.type == REMOVED:
            assert self.held.pop(name) == told.before
        else:
            assert (told.type == ADDED) == (name not in self.held)
            assert self.held.get(name) != told.task
            assert name not in self._over or has_ended(told.task)
            self.held[name] = told.task
        if has_ended(told.task):
            self._over.add(name)
        if told.has_ended:
            self.ends.append(name)


@settings(max_examples=300)
@given(
    st.randoms(use_true_random=True),
    st.lists(st.sampled_from(STEPS), min_size=10, max_size=60),
)
def test_the_applications_view_converges_and_no_end_is_lost_or_repeated(
    dice: random.Random, steps: list[str]
) -> None:
    gateway, application = Gateway(dice), Application()
    # A task that has ended when the watch begins is no news.
    for message in gateway.serve(""):
        application.take(message, 0.0)
    application.watched.interrupted(None, 0.0)
    ended: set[str] = set()
    for now, step in enumerate([*steps, "all"]):
        if step in {"cut", "behind", "all"}:
            if step == "behind":
                gateway.restart()
            token = application.watched.request.resume_token
            messages = list(gateway.serve(token, behind=step == "behind"))
            for message in messages[: None if step == "all" else dice.randrange(len(messages) + 1)]:
                application.take(message, now)
            application.watched.interrupted(None, now)
            if step == "behind":
                gateway.restart()
            continue
        for _ in range(10 if step == "happen" else 1):
            getattr(gateway, step)()
        ended |= {name for name, each in gateway.truth.items() if has_ended(each)}
    assert application.watched.covered == {("prod", region) for region in REGIONS}
    assert application.held == gateway.truth
    assert len(application.ends) == len(set(application.ends))
    # One that EC2 listed no longer before anybody looked is all that may be missing.
    assert {name for name in ended if name in gateway.truth} <= set(application.ends) <= ended
