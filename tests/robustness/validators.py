"""One function per guarantee: from a recorded history to what violates it, in words."""

from collections.abc import Callable, Iterator
from typing import Final

from history import REMOVED, Event, Held, History, Rest, Step, Stream, fact, replay

from imagetasks.v1 import store_image_tasks_pb2 as pb

Violations = Iterator[str]
# Seconds that floating point and a turn of the loop may take.
SLACK: Final = 0.5


def ordered(history: History) -> Violations:
    """A stream begins with `started`; its tokens never go back, and no task does."""
    for stream in history.streams:
        last = 0
        for number, step in enumerate(replay(stream)):
            if (number == 0) != step.event.HasField("started"):
                yield f"{_at(stream, step)}: `started` is not the first event, once"
            if step.mark is not None:
                if step.mark.revision < last:
                    yield f"{_at(stream, step)}: the token goes back from {last} to {step.mark.revision}"
                last = step.mark.revision
            for name, facts in step.after.tasks.items():
                for task_id, now in facts.items():
                    before = step.before.tasks.get(name, {}).get(task_id)
                    if before is None:
                        continue
                    if now.percentage < before.percentage or (before.ended and not now.ended):
                        yield f"{_at(stream, step)}: {task_id} goes back from {before} to {now}"


def unique(history: History) -> Violations:
    """What is held is never added again, what is not held never modified or removed, news are new."""
    for stream in history.streams:
        since = stream.since
        for step in replay(stream):
            held = step.before.copy()
            for change in step.event.changes.changes:
                name = (change.task.account, change.task.region)
                task_id = change.task.task_id
                before = held.tasks.get(name, {}).get(task_id)
                if (before is None) != (change.type == pb.TaskChange.TYPE_ADDED):
                    kind = pb.TaskChange.Type.Name(change.type)
                    yield f"{_at(stream, step)}: {kind} of {task_id}: {before}"
                unchanged = before is not None and before == fact(change.task) and change.type != REMOVED
                if unchanged and all(
                    history.view(stream, name, revision).get(task_id) == before
                    for revision in history.revisions(stream.process, since, step.newest)
                ):
                    yield f"{_at(stream, step)}: {task_id} was told twice: {before}"
                held.take(Event(changes=Event.Changes(changes=[change])))
            if step.mark is not None:
                since = step.mark.revision


def atomic(history: History) -> Violations:
    """What a client holds at the end of a group is a state that existed, over all its targets at once."""
    for stream in history.streams:
        since = stream.since
        for step in replay(stream):
            if step.mark is None:
                continue
            tried = [step.mark.revision, *history.revisions(stream.process, since, step.newest)]
            if not any(_differs(history, stream, step.after, step.at, each) is None for each in tried):
                yield f"{_at(stream, step)}: no state between {since} and {step.newest} was like this"
            since = step.mark.revision


def bookmarkable(history: History) -> Violations:
    """Everything up to a token was delivered, and nothing was behind it; what it calls covered is."""
    for stream in history.streams:
        for step in replay(stream):
            mark = step.mark
            if mark is None:
                continue
            if mark.revision > step.newest:
                yield f"{_at(stream, step)}: the token is of {mark.revision}, the newest was {step.newest}"
            for name in sorted(mark.uncovered & step.after.covered):
                # Of an account that came again there is a new snapshot to come.
                if not any(stream.opened <= when <= step.at for when, _ in history.policy):
                    yield f"{_at(stream, step)}: {name} is covered, the token says it is not"
            if found := _differs(history, stream, step.after, step.at, mark.revision):
                yield f"{_at(stream, step)}: not as of the token's {mark.revision}: {found}"


def heartbeats(history: History) -> Violations:
    """A heartbeat comes only when nothing is left to tell, and silence is never longer than told."""
    for stream in history.streams:
        for step in replay(stream):
            if step.event.HasField("heartbeat"):
                found = _differs(history, stream, step.after, step.at, step.newest)
                if found or (step.mark and step.mark.revision != step.newest):
                    yield f"{_at(stream, step)}: a heartbeat with news outstanding: {found}"
    for rest, stream, received in _reading(history):
        silent = rest.at - max([stream.opened, *(end for _, end in stream.stalls), *_times(stream, received)])
        if silent > history.heartbeat + SLACK:
            yield f"stream {stream.subscriber} at {rest.at:.1f}: silent for {silent:.1f} s"


def reliable(history: History) -> Violations:
    """A task that was seen to end is told; in the end all is held that EC2 lists, and nothing else."""
    for rest, stream, received in _reading(history):
        held = _held(stream, received)
        for name in history.compared(stream, held, rest.at):
            for task_id, now in history.view(stream, name, rest.revision).items():
                known = held.tasks.get(name, {}).get(task_id)
                if now.ended and (known is None or not known.ended):
                    yield f"stream {stream.subscriber} at {rest.at:.1f}: {task_id} ended, held as {known}"
    last = max(
        (rest.at for rest in history.rests if rest.at <= history.drains[_last_process(history)]), default=0
    )
    for rest, stream, received in _reading(history):
        if rest.at != last:
            continue
        held = _held(stream, received)
        for name, tasks in history.truth.items():
            told = {key: (now.word, now.percentage) for key, now in held.tasks.get(name, {}).items()}
            truth = {
                t.task_id: (t.ec2_store_task_state, t.progress_percentage) for t in tasks if stream.matches(t)
            }
            if told != truth:
                yield f"stream {stream.subscriber} at the end: holds {told} of {name}, EC2 lists {truth}"


def removals(history: History) -> Violations:
    """What is gone is taken back."""
    for rest, stream, received in _reading(history):
        held = _held(stream, received)
        for name in history.compared(stream, held, rest.at):
            gone = set(held.tasks.get(name, {})) - set(history.view(stream, name, rest.revision))
            if gone:
                yield f"stream {stream.subscriber} at {rest.at:.1f}: still holds {sorted(gone)} of {name}"


def resumable(history: History) -> Violations:
    """A token that means nothing here is refused or answered by a reset of all, before anything else."""
    refused = {"damaged", "other"}
    for stream in history.streams:
        if stream.resumes in refused and stream.end != "RESUME_TOKEN_INVALID":
            yield f"stream {stream.subscriber}: a {stream.resumes} token was taken"
        if stream.resumes in {"future", "epoch"}:
            events = [event for _, event, _ in stream.events]
            if events and events[0].started.resumed:
                yield f"stream {stream.subscriber}: resumed by a token of {stream.resumes}"
            if len(events) > 1 and not (events[1].HasField("reset") and not events[1].reset.targets):
                yield f"stream {stream.subscriber}: {events[1].WhichOneof('event')} instead of a reset"


def fresh(history: History) -> Violations:
    """What is covered was read a moment ago, or the client was told that it cannot be."""
    for rest, stream, received in _reading(history):
        if rest.at - max([stream.opened, *(end for _, end in stream.stalls)]) < history.fresh_within:
            continue
        stale = _stale(stream, received)
        for name in history.compared(stream, _held(stream, received), rest.at):
            age = rest.at - history.read_time(stream, name, rest.at)
            if age > history.fresh_within and not stale.get(name):
                yield f"stream {stream.subscriber} at {rest.at:.1f}: {name} is {age:.1f} s old, unsaid"


def isolated(history: History) -> Violations:
    """Whoever reads has everything at once, whatever others do and whichever targets hang."""
    for rest, stream, received in _reading(history):
        held = _held(stream, received)
        if found := _differs(history, stream, held, rest.at, rest.revision):
            yield f"stream {stream.subscriber} at {rest.at:.1f}: not up to date: {found}"
        stale = _stale(stream, received)
        for name in _names(history, stream.process):
            # An account that came a moment ago may have to be found out first; the client hears so.
            if stale.get((name[0], "")):
                continue
            if history.steady(stream, name[0], rest.at) and name not in held.covered:
                # What is read in this very moment may come after the rest.
                read_time = history.read_time(stream, name, rest.at - SLACK)
                if read_time >= stream.opened and rest.at > stream.opened + 3 * history.heartbeat:
                    yield f"stream {stream.subscriber} at {rest.at:.1f}: {name} was read and is not covered"


def economical(history: History) -> Violations:
    """A target is read no more often than configured, and only while somebody follows or has just left."""
    last: dict[tuple[int, str, str], float] = {}
    for at, process, account_id, region in history.calls:
        before = last.get((process, account_id, region))
        last[process, account_id, region] = at
        if before is not None and at - before < history.busy * 0.99:
            yield f"{account_id} {region} was read at {before:.1f} and at {at:.1f}"
        if not any(
            stream.process == process
            and stream.opened <= at
            and (stream.ended is None or at <= stream.ended + history.linger + SLACK)
            for stream in history.streams
        ):
            yield f"{account_id} {region} was read at {at:.1f} for nobody"


def cleanly_ended(history: History) -> Violations:
    """Whoever reads when the process drains gets `closing` with a token, and then the end."""
    for stream in history.streams:
        kinds = [event.WhichOneof("event") for _, event, _ in stream.events]
        if "closing" in kinds[:-1]:
            yield f"stream {stream.subscriber}: goes on after `closing`"
        drained = history.drains.get(stream.process)
        if drained is None or (stream.ended is not None and stream.ended < drained):
            continue
        if stream.end == "done" and not (kinds[-1] == "closing" and stream.events[-1][1].resume_token):
            yield f"stream {stream.subscriber}: ended with {kinds[-1]}"
        if stream.end != "done" and stream.opened < drained and not stream.stalled(drained, drained):
            yield f"stream {stream.subscriber}: did not end: {stream.end}"


def walled(history: History) -> Violations:
    """Of an account that ended nothing more is told soon after, and its tasks are taken back."""
    for rest, stream, received in _reading(history):
        for account in {account for account, _ in _held(stream, received).tasks}:
            held = {
                k for (a, _), facts in _held(stream, received).tasks.items() if a == account for k in facts
            }
            ended = _ended(history, account, rest.at)
            if held and ended is not None and not stream.stalled(ended, rest.at - history.heartbeat):
                since = max(ended, stream.opened)
                if rest.at > since + history.heartbeat + SLACK:
                    yield f"stream {stream.subscriber} at {rest.at:.1f}: holds {held} of {account}"


VALIDATORS: Final[tuple[Callable[[History], Violations], ...]] = (
    ordered,
    unique,
    atomic,
    bookmarkable,
    heartbeats,
    reliable,
    removals,
    resumable,
    fresh,
    isolated,
    economical,
    cleanly_ended,
    walled,
)


def _differs(history: History, stream: Stream, held: Held, at: float, revision: int) -> str | None:
    for name in history.compared(stream, held, at):
        told, shown = held.tasks.get(name, {}), history.view(stream, name, revision)
        if told != shown:
            only = {k: v for k, v in told.items() if shown.get(k) != v}
            lacks = {k: v for k, v in shown.items() if told.get(k) != v}
            return f"of {name} it holds {only}, there is {lacks}"
    return None


def _reading(history: History) -> Iterator[tuple[Rest, Stream, int]]:
    for rest in history.rests:
        for number, received in rest.reading:
            yield rest, history.streams[number], received


def _stale(stream: Stream, received: int) -> dict[tuple[str, str], bool]:
    """Of which targets the client was told last that they cannot be read."""
    stale = {}
    for _, event, _ in stream.events[:received]:
        if event.HasField("target_status"):
            status = event.target_status
            stale[status.target.account, status.target.region] = status.HasField("status")
    return stale


def _held(stream: Stream, received: int) -> Held:
    return replay(stream)[received - 1].after if received else stream.began_with


def _times(stream: Stream, received: int) -> list[float]:
    return [at for at, _, _ in stream.events[:received]]


def _names(history: History, process: int) -> list[tuple[str, str]]:
    return [
        (name, region)
        for number, account_id, region in history.states
        for name, each in history.ids.items()
        if number == process and each == account_id and (name != "twin" or region == "r1")
    ]


def _ended(history: History, account: str, at: float) -> float | None:
    """Since when the account has been gone without a break; None if it is there."""
    since = None
    for when, names in history.policy:
        if when <= at:
            since = None if account in names else (when if since is None else since)
    return since


def _last_process(history: History) -> int:
    return max(history.drains)


def _at(stream: Stream, step: Step) -> str:
    return f"stream {stream.subscriber} at {step.at:.1f}, {step.event.WhichOneof('event')}"
