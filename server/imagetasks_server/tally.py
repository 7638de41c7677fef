"""What one call is about and what it costs: filled in by those who answer it, told by its record.

A read is shared, and belongs to nobody who waits for it; but somebody's demand began it, and it counts on
that call's tally. What the gateway reads of its own accord, for all who follow a target or to complete a
list, counts on `GATEWAY`.
"""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Span


# So many targets are told by their names.
FEW: Final = 4


class Named(Protocol):
    """A target."""

    @property
    def account(self) -> str:
        """Its account's name."""
        ...

    @property
    def region(self) -> str:
        """Its Region."""
        ...


class How(enum.StrEnum):
    """How one target's part of an answer came about."""

    OWN = "own"
    """From a read that this call began."""
    SHARED = "shared"
    """From a read that another call, or the gateway itself, had begun."""
    CACHED = "cached"
    """From what was known."""
    STALE = "stale"
    """From what was known, although it is older than was asked for."""
    NONE = "none"
    """Not at all: an error stands in the answer."""


class Kind(enum.StrEnum):
    """What EC2 is asked for."""

    FULL = "full"
    """A page of a full read."""
    HEAD = "head"
    """A page of a read from the newest task down, as far as must be."""
    IDS = "ids"
    """Unfinished tasks deep in the list, by their image ids."""
    SWEEP = "sweep"
    """A page of a full read behind the answers."""
    LOOKUP = "lookup"
    """Whether images exist."""
    DRY_RUN = "dry_run"
    """Whether the gateway may ask."""


@dataclass(slots=True, eq=False)
class Tally:
    """One call's.

    Attributes:
        payer: Who calls, as it is told in metrics: one of few names.
        targets: How many targets are asked, if that is known by now.
        names: Their names, if there are few.
        answers: How many targets' parts came about how.
        calls: Calls to EC2 that were made for it until now, whatever came of them.
        messages: Messages of a stream until now.
        changes: Changes that a watch has told until now.
        lag: Seconds at most from the start of a read to the moment when its changes were told.
        span: Its span, if it is traced.
    """

    payer: str = "anonymous"
    targets: int | None = None
    names: tuple[str, ...] = ()
    answers: dict[How, int] = field(default_factory=dict)
    calls: int = 0
    messages: int = 0
    changes: int = 0
    lag: float | None = None
    span: "Span | None" = None

    def asks(self, targets: Sequence[Named]) -> None:
        """These are the targets that are asked."""
        self.targets = len(targets)
        self.names = tuple(f"{each.account}/{each.region}" for each in targets) if self.targets <= FEW else ()

    def answered(self, how: How, targets: int = 1) -> None:
        """Count targets that answered like this."""
        self.answers[how] = self.answers.get(how, 0) + targets


GATEWAY: Final = Tally(payer="gateway")


def _nobody() -> Iterable[Tally]:
    return ()


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a call to EC2 is made for.

    Attributes:
        kind: What is asked.
        tally: On which it counts.
        waiters: Those who wait for it at this moment.
    """

    kind: Kind = Kind.FULL
    tally: Tally = GATEWAY
    waiters: Callable[[], Iterable[Tally]] = _nobody
