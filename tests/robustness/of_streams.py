"""Validators of where a watch begins and ends, which targets it follows, and who may see them."""

from typing import Final, TypeAlias

from facts import REMOVED, Event, Name, fact, names_of
from history import History
from judging import SLACK, Violations, held_by, lost, reading, where
from told import Step, Stream, replay

from imagetasks.v1 import store_image_tasks_pb2 as pb

# Of a message that says only which task it is.
STATE: Final = ("progress_percentage", "ec2_store_task_state", "store_task_failure_reason", "pace")
# Seconds for which what a token is about is surely kept.
KEPT: Final = 50.0
ACCESS_ENDED: Final = pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED
Closing: TypeAlias = Event.Closing


def resumable(history: History) -> Violations:
    """A token goes on where it may. One that means nothing here is refused, or answered by a reset of all."""
    for stream in history.streams:
        events = [event for _, event, _ in stream.events]
        if stream.resumes in {"damaged", "other"}:
            if stream.end != "RESUME_TOKEN_INVALID":
                yield f"stream {stream.subscriber}: a {stream.resumes} token was taken"
            continue
        if not stream.resumes or not events:
            continue
        resumed = events[0].started.resumed
        if resumed and stream.resumes != "own":
            yield f"stream {stream.subscriber}: resumed by a token of {stream.resumes}"
        if not resumed and not _may_expire(history, stream):
            yield f"stream {stream.subscriber}: not resumed from {stream.given:.1f}"
        second = events[1] if len(events) > 1 else Event(reset=Event.Reset())
        if not resumed and (not second.HasField("reset") or second.reset.targets):
            yield f"stream {stream.subscriber}: {second.WhichOneof('event')} instead of a reset"


def required(history: History) -> Violations:
    """Who demands to be told all since his token is told that, or refused; nobody else is refused."""
    for stream in history.streams:
        if stream.end == "RESUME_TOKEN_EXPIRED" and not (stream.requires and _may_expire(history, stream)):
            yield f"stream {stream.subscriber}: refused, {stream.resumes} and {stream.requires}"
        if not stream.requires or not stream.events:
            continue
        if not stream.events[0][1].started.resumed:
            yield f"stream {stream.subscriber}: not refused, with a token of {stream.resumes}"
        elif lacks := _taken_back(stream):
            yield f"stream {stream.subscriber}: not refused, and begins anew with {lacks}"


def aware(history: History) -> Violations:
    """A client knows which targets are followed."""
    for rest, stream, received in reading(history):
        followed = held_by(stream, received).followed
        for name in history.names():
            if history.steady(stream, name, rest.at) and name not in followed:
                yield f"stream {stream.subscriber} at {rest.at:.1f}: was not told that {name} is followed"
            since = lost(history, stream, name, rest.at)
            if since is not None and name in followed:
                yield f"stream {stream.subscriber} at {rest.at:.1f}: was not told that {name} is not followed"


def cleanly_ended(history: History) -> Violations:
    """A stream ends when it must, with `closing`, why, and a token; else its client left or lost all."""
    for stream in history.streams:
        kinds = [event.WhichOneof("event") for _, event, _ in stream.events]
        if "closing" in kinds[:-1]:
            yield f"stream {stream.subscriber}: goes on after `closing`"
        ended = stream.ended if stream.ended is not None else history.rests[-1].at
        if stream.end == "done":
            event = stream.events[-1][1]
            if kinds[-1] != "closing" or not event.resume_token:
                yield f"stream {stream.subscriber}: ended with {kinds[-1]}"
            elif not _is_due(history, stream, event.closing.reason, ended):
                reason = Closing.Reason.Name(event.closing.reason)
                yield f"stream {stream.subscriber} at {ended:.1f}: said {reason}"
        elif (
            stream.end != "left" and kinds and any(history.steady(stream, n, ended) for n in history.names())
        ):
            yield f"stream {stream.subscriber}: {stream.end}, and it may see something"
        end = min(
            max(stream.opened, history.drains.get(stream.process, ended)),
            stream.sight.expires,
            stream.sight.revoked,
            stream.opened + history.rules.lifetime,
        )
        if ended > end + SLACK and not stream.stalled(end, ended):
            yield f"stream {stream.subscriber}: ended at {ended:.1f}, not at {end:.1f}"


def walled(history: History) -> Violations:  # noqa: C901  # a list of what must not be
    """Nothing is told of a target that may not be seen; what is held of it is taken back without its state.

    Who stalls when it is lost may still be told what was on its way, but nothing from after the loss.
    """
    for stream in history.streams:
        for step in replay(stream):
            if step.at > stream.sight.revoked:
                yield f"{where(stream, step)}: the credential is void"
            for name in _told_of(step.event):
                since = stream.sight.lost(name, step.at)
                if since is not None and step.at > since and not stream.stalled(since, step.at):
                    yield f"{where(stream, step)}: tells of {name}, lost at {since:.1f}"
            for change in step.event.changes.changes:
                if change.removal_reason == ACCESS_ENDED and _has_state(change.task):
                    yield f"{where(stream, step)}: tells the state of {change.task.task_id}"
                if change.type != REMOVED and _is_of_after_the_loss(history, stream, step, change.task):
                    yield f"{where(stream, step)}: tells of {change.task.task_id} from after the loss"
    for rest, stream, received in reading(history):
        for name, facts in held_by(stream, received).tasks.items():
            since = lost(history, stream, name, rest.at)
            if facts and since is not None:
                yield f"stream {stream.subscriber} at {rest.at:.1f}: holds {facts} of {name}"


def _told_of(event: Event) -> set[Name]:
    """Which targets something is told of, but for what takes back."""
    match event.WhichOneof("event"):
        case "changes":
            told = [each for each in event.changes.changes if each.removal_reason != ACCESS_ENDED]
            return {(each.task.account, each.task.region) for each in told}
        case "snapshot_complete":
            return set(names_of(event.snapshot_complete.targets))
        case "targets_changed":
            return set(names_of(event.targets_changed.targets))
        case "target_status" if event.target_status.target.region:
            return set(names_of([event.target_status.target]))
    return set()


def _may_expire(history: History, stream: Stream) -> bool:
    """Whether what the token was given for may be something else by now, or forgotten."""
    if stream.resumes != "own" or stream.opened - stream.given > KEPT:
        return True
    since = stream.given - history.rules.found_within
    is_same = stream.given_for is stream.sight.decided[0][1]
    return not is_same or any(history.came_or_went(name, since, stream.opened) for name in history.names())


def _taken_back(stream: Stream) -> frozenset[Name]:
    """Of which targets a client must forget at once what it held as of its token."""
    first = (event for at, event, _ in stream.events if at == stream.opened and event.HasField("reset"))
    gone = frozenset[Name]().union(*(names_of(event.reset.targets) for event in first))
    return gone & stream.began_with.covered if not stream.stalls else frozenset()


def _has_state(task: pb.StoreImageTaskResult) -> bool:
    return any(task.HasField(each) for each in STATE)


def _is_of_after_the_loss(
    history: History, stream: Stream, step: Step, task: pb.StoreImageTaskResult
) -> bool:
    """Whether a client is told what became known of a target after that was lost to it."""
    name = (task.account, task.region)
    since = stream.sight.lost(name, step.at)
    if since is None or step.at <= since:
        return False
    known = history.known(stream.process, name, since)
    then = known.tasks.get(task.task_id) if known else None
    return fact(task).is_newer(fact(then) if then else None)


def _is_due(history: History, stream: Stream, reason: "Closing.Reason.ValueType", at: float) -> bool:
    """Whether a stream had to end for that reason."""
    match reason:
        case Closing.REASON_DRAINING:
            return at >= history.drains.get(stream.process, at + 1)
        case Closing.REASON_CREDENTIAL_EXPIRED:
            return at >= stream.sight.expires - SLACK
        case Closing.REASON_MAX_AGE:
            return at >= stream.opened + 0.8 * history.rules.lifetime - SLACK
    return False
