"""Validators of what a watch tells of tasks."""

from facts import REMOVED, Event, fact
from history import History
from judging import SLACK, Violations, differs, held_by, reading, where
from told import Stream, replay

from imagetasks.v1 import store_image_tasks_pb2 as pb


def ordered(history: History) -> Violations:
    """A stream begins with `started`; its tokens never go back, and no task does."""
    for stream in history.streams:
        last = 0
        for number, step in enumerate(replay(stream)):
            if (number == 0) != step.event.HasField("started"):
                yield f"{where(stream, step)}: `started` is not the first event, once"
            if step.mark is not None:
                if step.mark.revision < last:
                    yield f"{where(stream, step)}: the token goes back from {last} to {step.mark.revision}"
                last = step.mark.revision
            for name, facts in step.after.tasks.items():
                for task_id, now in facts.items():
                    before = step.before.tasks.get(name, {}).get(task_id)
                    if before is None:
                        continue
                    if now.percentage < before.percentage or (before.ended and not now.ended):
                        yield f"{where(stream, step)}: {task_id} goes back from {before} to {now}"


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
                    yield f"{where(stream, step)}: {kind} of {task_id}: {before}"
                unchanged = before is not None and before == fact(change.task) and change.type != REMOVED
                if unchanged and all(
                    history.view(stream, name, revision).get(task_id) == before
                    for revision in history.revisions(stream.process, since, step.newest)
                ):
                    yield f"{where(stream, step)}: {task_id} was told twice: {before}"
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
            if not any(differs(history, stream, step.after, step.at, each) is None for each in tried):
                yield f"{where(stream, step)}: no state between {since} and {step.newest} was like this"
            since = step.mark.revision


def bookmarkable(history: History) -> Violations:
    """Everything up to a token was delivered, and nothing was behind it; what it calls covered is."""
    for stream in history.streams:
        for step in replay(stream):
            mark = step.mark
            if mark is None:
                continue
            if mark.revision > step.newest:
                yield f"{where(stream, step)}: the token is of {mark.revision}, the newest was {step.newest}"
            for name in sorted(mark.uncovered & step.after.covered):
                # Of a target that came again there is a new snapshot to come.
                if history.steady(stream, name, step.at):
                    yield f"{where(stream, step)}: {name} is covered, the token says it is not"
            if found := differs(history, stream, step.after, step.at, mark.revision):
                yield f"{where(stream, step)}: not as of the token's {mark.revision}: {found}"


def heartbeats(history: History) -> Violations:
    """A heartbeat comes only when nothing is left to tell, and silence is never longer than told."""
    for stream in history.streams:
        for step in replay(stream):
            if step.event.HasField("heartbeat"):
                found = differs(history, stream, step.after, step.at, step.newest)
                if found or (step.mark and step.mark.revision != step.newest):
                    yield f"{where(stream, step)}: a heartbeat with news outstanding: {found}"
    for rest, stream, received in reading(history):
        silent = rest.at - max([stream.read_since(), *_times(stream, received)])
        if silent > history.rules.heartbeat + SLACK:
            yield f"stream {stream.subscriber} at {rest.at:.1f}: silent for {silent:.1f} s"


def reliable(history: History) -> Violations:
    """A task that was seen to end is told; in the end all is held that EC2 lists, and nothing else."""
    for rest, stream, received in reading(history):
        held = held_by(stream, received)
        for name in history.compared(stream, held, rest.at):
            for task_id, now in history.view(stream, name, rest.revision).items():
                known = held.tasks.get(name, {}).get(task_id)
                if now.ended and (known is None or not known.ended):
                    yield f"stream {stream.subscriber} at {rest.at:.1f}: {task_id} ended, held as {known}"
    last = max(
        (rest.at for rest in history.rests if rest.at <= history.drains[_last_process(history)]), default=0
    )
    for rest, stream, received in reading(history):
        # Who has just come has not been told all yet.
        if rest.at != last or rest.at - stream.opened < 3 * history.rules.heartbeat:
            continue
        held = held_by(stream, received)
        for name, tasks in history.truth.items():
            if not history.steady(stream, name, rest.at):
                continue
            told = {key: (now.word, now.percentage) for key, now in held.tasks.get(name, {}).items()}
            truth = {each.task_id: fact(each)[:2] for each in tasks if stream.matches(each)}
            if told != truth:
                yield f"stream {stream.subscriber} at the end: holds {told} of {name}, EC2 lists {truth}"


def removals(history: History) -> Violations:
    """What is gone is taken back."""
    for rest, stream, received in reading(history):
        held = held_by(stream, received)
        for name in history.compared(stream, held, rest.at):
            gone = set(held.tasks.get(name, {})) - set(history.view(stream, name, rest.revision))
            if gone:
                yield f"stream {stream.subscriber} at {rest.at:.1f}: still holds {sorted(gone)} of {name}"


def _times(stream: Stream, received: int) -> list[float]:
    return [at for at, _, _ in stream.events[:received]]


def _last_process(history: History) -> int:
    return max(history.drains)
