"""What validators have in common: who read when, what he held, and whether that is so."""

from collections.abc import Iterator
from typing import Final

from facts import Held, Name
from history import History, Rest
from told import Step, Stream, replay

Violations = Iterator[str]
# Seconds that floating point and a turn of the loop may take.
SLACK: Final = 0.5


def differs(history: History, stream: Stream, held: Held, at: float, revision: int) -> str | None:
    for name in history.compared(stream, held, at):
        told, shown = held.tasks.get(name, {}), history.view(stream, name, revision)
        if told != shown:
            only = {k: v for k, v in told.items() if shown.get(k) != v}
            lacks = {k: v for k, v in shown.items() if told.get(k) != v}
            return f"of {name} it holds {only}, there is {lacks}"
    return None


def reading(history: History) -> Iterator[tuple[Rest, Stream, int]]:
    for rest in history.rests:
        for number, received in rest.reading:
            yield rest, history.streams[number], received


def stale_for(stream: Stream, received: int) -> dict[Name, bool]:
    """Of which targets the client was told last that they cannot be read."""
    stale = {}
    for _, event, _ in stream.events[:received]:
        if event.HasField("target_status"):
            status = event.target_status
            stale[status.target.account, status.target.region] = status.HasField("status")
    return stale


def held_by(stream: Stream, received: int) -> Held:
    return replay(stream)[received - 1].after if received else stream.began_with


def lost(history: History, stream: Stream, name: Name, at: float) -> float | None:
    """Since when a client who reads must know that a target is lost to it; None if it need not."""
    since = stream.sight.lost(name, at)
    if since == at:
        # What happens in this very moment may come after the rest.
        return None
    if since is None:
        since = history.gone(name, at)
        if since is None or at <= _found_by(history, stream, name, since, at):
            return None
        # What cannot be found out is not known to have gone.
        if history.came_or_went(name, since + SLACK, at):
            return None
    return None if stream.stalled(since, at) else since


def _found_by(history: History, stream: Stream, name: Name, since: float, at: float) -> float:
    """When a client must know that a target has gone: a Region takes longer than a whole account."""
    found_by = max(since, stream.opened) + history.rules.found_within
    gone = [history.gone(each, at) for each in history.names() if each[0] == name[0]]
    ended = max((each for each in gone if each is not None), default=since)
    if None in gone:
        return found_by
    return min(found_by, max(ended, stream.opened) + history.rules.heartbeat + SLACK)


def where(stream: Stream, step: Step) -> str:
    return f"stream {stream.subscriber} at {step.at:.1f}, {step.event.WhichOneof('event')}"
