"""Questions asked before, word for word: answered at once, if the same answer still stands.

Callers that poll send the same bytes each time. Which targets these ask and how old the answer may be is kept
here with the answer, so that it is not found out again. Nothing here waits. Whatever is not certain takes the
long way, and so does each question once in a while, for that also counts targets as used and renews lists of
Regions.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from imagetasks_server.answers import Answer
from imagetasks_server.clock import Clock
from imagetasks_server.permission import Permission
from imagetasks_server.tally import How, Tally
from imagetasks_server.targets import Targets

Again: TypeAlias = Callable[[bytes, Permission, Tally], bytes | None]
"""Gives the answer to a request as it was sent, if that needs no waiting."""

# Questions that are kept, and the longest one.
KEPT: Final = 1024
LONGEST_BYTES: Final = 4096
# Seconds for which no repeat takes the long way.
RENEWED_EVERY: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A question with its answer.

    Attributes:
        permission: Of whom it was answered.
        answer: While somebody else keeps it.
        targets: How many were asked.
        names: Their names, if there are few.
        version: Of the list of targets.
        max_age: Seconds that what it shows may be old.
        floor: Unix seconds; where a listing goes on, this says how old it may be.
        until: Unix seconds.
    """

    permission: Permission
    answer: "weakref.ref[Answer]"
    targets: int
    names: tuple[str, ...]
    version: int
    max_age: float
    floor: float | None
    until: float


class Repeats:
    """Answers to repeated questions.

    Args:
        targets: Which accounts and Regions there are.
        clock: Unix seconds.
    """

    def __init__(self, targets: Targets, clock: Clock) -> None:
        self._targets = targets
        self._clock = clock
        # A permission is one object for all whom it is given to.
        self._kept: dict[tuple[bytes, int], _Repeat] = {}

    def answer(self, message: bytes, permission: Permission, tally: Tally) -> bytes | None:
        """The answer to a request, as it was sent; None: this takes the long way."""
        repeat = self._kept.get((message, id(permission)))
        if repeat is None or repeat.permission is not permission:
            return None
        now, answer = self._clock(), repeat.answer()
        if now >= repeat.until or repeat.version != self._targets.version or answer is None:
            return None
        if not answer.stands(now - repeat.max_age if repeat.floor is None else repeat.floor):
            return None
        tally.targets, tally.names = repeat.targets, repeat.names
        tally.answered(How.CACHED, repeat.targets)
        return answer.message

    def keep(
        self,
        message: bytes,
        permission: Permission,
        answer: Answer,
        tally: Tally,
        *,
        version: int,
        max_age: float,
        floor: float | None,
    ) -> None:
        """Remember how a request was answered the long way.

        Args:
            message: The request, as it was sent.
            permission: Whose answer it is.
            answer: To it.
            tally: The call's: which targets were asked.
            version: Of the list of targets, before they were looked up.
            max_age: Seconds that the answer may be old.
            floor: Unix seconds; where a listing goes on, this instead.
        """
        if not answer.is_of_views or tally.targets is None or len(message) > LONGEST_BYTES:
            return
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[message, id(permission)] = _Repeat(
            permission,
            weakref.ref(answer),
            tally.targets,
            tally.names,
            version,
            max_age,
            floor,
            self._clock() + RENEWED_EVERY,
        )
