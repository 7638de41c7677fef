"""Validators of how EC2 is read, and of all who ask beside watches."""

import bisect
from typing import TypeAlias

from facts import Name, fact
from history import History
from judging import SLACK, Violations, differs, held_by, reading, stale_for
from told import Asked, Describe, Wait

from imagetasks.v1 import store_image_tasks_pb2 as pb

Answer: TypeAlias = pb.WaitStoreImageTasksResponse


def fresh(history: History) -> Violations:
    """What is covered was read a moment ago, or the client was told that it cannot be."""
    for rest, stream, received in reading(history):
        if rest.at - stream.read_since() < history.rules.fresh_within:
            continue
        stale = stale_for(stream, received)
        for name in history.compared(stream, held_by(stream, received), rest.at):
            age = rest.at - history.read_time(stream, name, rest.at)
            if age > history.rules.fresh_within and not stale.get(name):
                yield f"stream {stream.subscriber} at {rest.at:.1f}: {name} is {age:.1f} s old, unsaid"


def isolated(history: History) -> Violations:
    """Whoever reads has everything at once, whatever others do and whichever targets hang."""
    for rest, stream, received in reading(history):
        held = held_by(stream, received)
        if found := differs(history, stream, held, rest.at, rest.revision):
            yield f"stream {stream.subscriber} at {rest.at:.1f}: not up to date: {found}"
        if rest.at <= stream.opened + 3 * history.rules.heartbeat:
            continue
        for name in history.names():
            # What is read in this very moment may come after the rest.
            was_read = history.read_time(stream, name, rest.at - SLACK) >= stream.read_since()
            if was_read and name not in held.covered and history.steady(stream, name, rest.at):
                yield f"stream {stream.subscriber} at {rest.at:.1f}: {name} was read and is not covered"


def shared(history: History) -> Violations:
    """What a describe was told, each who reads holds at that moment."""
    for describe in history.describes:
        if describe.rest is None:
            continue
        rest = history.rests[describe.rest]
        for number, received in rest.reading:
            stream = history.streams[number]
            held = held_by(stream, received)
            if describe.name not in history.compared(stream, held, rest.at):
                continue
            facts = held.tasks.get(describe.name, {})
            for task in filter(stream.matches, describe.tasks):
                known = facts.get(task.task_id)
                if fact(task).is_newer(known):
                    yield f"stream {stream.subscriber} at {rest.at:.1f}: {fact(task)} was told, not {known}"


def abreast(history: History) -> Violations:
    """What a watch was told of a task before, a describe is told too, or newer."""
    for describe in history.describes:
        rest = history.rests[describe.after] if describe.after >= 0 else None
        if rest is None or rest.process != describe.process or describe.reason or describe.ended is None:
            continue
        told = {task.task_id: fact(task) for task in describe.tasks}
        for number, received in rest.reading:
            stream = history.streams[number]
            held = held_by(stream, received)
            if describe.name not in history.compared(stream, held, rest.at):
                continue
            for task_id, known in held.tasks.get(describe.name, {}).items():
                if task_id in told and known.is_newer(told[task_id]):
                    yield f"describe at {describe.began:.1f}: {told[task_id]} was told, not {known}"


def economical(history: History) -> Violations:
    """A target is read as often as configured or demanded, only for somebody, and within its budget."""
    last: dict[tuple[int, str, str], float] = {}
    for call in history.calls:
        # What a process does while it dies is no rhythm.
        if not call.lists or call.at == history.killed.get(call.process):
            continue
        place = (call.process, call.account_id, call.region)
        before = last.get(place, 0.0)
        last[place] = call.at
        asked = [each for each in history.asked() if _asks(history, each, *place)]
        is_soon = call.at - before < history.rules.busy * 0.99
        states = history.states.get(place, [])
        # As it was before: what comes of a read that takes no time stands at its own instant. Only of two in
        # one instant the first may be what was known.
        find = bisect.bisect_right if before == call.at else bisect.bisect_left
        at = find(states, call.at, key=lambda each: each.at)
        was_failing = at > 0 and not states[at - 1].well
        # What somebody asked for in vain puts nothing off.
        in_vain = was_failing and any(each.began <= before for each in asked)
        if is_soon and not in_vain and not any(before < each.began <= call.at for each in asked):
            yield f"{place} was read at {before:.1f} and at {call.at:.1f}"
        streams = (stream for stream in history.streams if stream.process == call.process)
        stays = [(each.opened, each.ended) for each in streams] + [(each.began, each.ended) for each in asked]
        still = call.at - history.rules.linger - history.rules.unpaid - SLACK
        if not any(begin <= call.at and (end is None or end >= still) for begin, end in stays):
            yield f"{place} was read at {call.at:.1f} for nobody"
    yield from _overspent(history)


def waited(history: History) -> Violations:
    """A wait is done when all has ended that is to be seen since it was asked for, and not before."""
    for wait in history.waits:
        if wait.response is not None and wait.ended is not None:
            for text in _untrue(history, wait, wait.response, wait.ended):
                yield f"wait at {wait.began:.1f}, until {wait.ended:.1f}: {text}"
    for rest in history.rests:
        for wait in history.waits:
            runs = wait.process == rest.process and wait.began <= rest.at
            if runs and (wait.ended is None or wait.ended > rest.at) and _is_over(history, wait, rest.at):
                yield f"wait at {wait.began:.1f}: all had ended by {rest.at:.1f}"


def _untrue(history: History, wait: Wait, answer: Answer, ended: float) -> Violations:  # noqa: C901  # a list of what must not be
    for name in {(task.account, task.region) for task in answer.store_image_task_results}:
        since = wait.sight.lost(name, ended)
        if since is not None and since < ended:
            yield f"tells of {name}, lost at {since:.1f}"
    if answer.done != (answer.reason == Answer.REASON_UNSPECIFIED):
        yield "done, and why not"
    match answer.reason:
        case Answer.REASON_UNSPECIFIED | Answer.REASON_NOTHING_MATCHES:
            if running := [name for name in wait.running if _is_steady_for(history, wait, name, ended)]:
                yield f"something runs in {running}"
            if any(not fact(task).ended for task in answer.store_image_task_results):
                yield "over, with unfinished tasks"
            if any(each.source != pb.SOURCE_LIVE for each in answer.target_outcomes):
                yield "over, and not all was read"
            if not answer.done and (wait.appear or answer.store_image_task_results):
                yield "nothing matches"
        case Answer.REASON_TIMEOUT:
            if not wait.until - SLACK <= ended <= wait.until + SLACK:
                yield f"timed out, and had time until {wait.until:.1f}"
        case Answer.REASON_DRAINING:
            if ended < history.drains.get(wait.process, ended + 1):
                yield "nobody drains"


def _asks(history: History, asked: Asked, process: int, account_id: str, region: str) -> bool:
    """Whether a call demands reads of a target."""
    if asked.process != process:
        return False
    # A wait demands them of all.
    if not isinstance(asked, Describe):
        return True
    # One that would take what is old demands one where nothing is known.
    return (history.ids[asked.name[0]], asked.name[1]) == (account_id, region)


def _overspent(history: History) -> Violations:
    rules = history.rules
    left: dict[tuple[int, str, str], tuple[float, float]] = {}
    for call in history.calls:
        place = (call.process, call.account_id, call.region)
        at, tokens = left.get(place, (history.begun[call.process], rules.initial))
        tokens = min(rules.capacity, tokens + (call.at - at) * rules.refill) - 1
        left[place] = (call.at, tokens)
        if tokens < -SLACK:
            yield f"{place} was asked at {call.at:.1f} without a token"


def _is_steady_for(history: History, wait: Wait, name: Name, ended: float) -> bool:
    """Whether a target was there and could be seen all the time."""
    return not (
        history.gone(name, ended) is not None
        or wait.sight.lost(name, ended) is not None
        or history.came_or_went(name, wait.began - history.rules.found_within, ended)
        or wait.sight.changed(name, wait.began, ended)
    )


def _is_over(history: History, wait: Wait, at: float) -> bool:
    """Whether all is known that a wait wants to know, and all has ended."""
    found = False
    for name in history.names():
        since = wait.began - history.rules.found_within
        if history.came_or_went(name, since, at) or wait.sight.changed(name, wait.began, at):
            return False
        if history.gone(name, at) is not None or wait.sight.lost(name, at) is not None:
            continue
        known = history.known(wait.process, name, at)
        if known is None or not known.well or (known.read_time or 0.0) < wait.began:
            return False
        facts = [fact(task) for task in known.tasks.values() if wait.matches(task)]
        if not all(each.ended for each in facts):
            return False
        found |= bool(facts)
    return found
