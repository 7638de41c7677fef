"""One target's part of an answer, from the question to its outcome."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import DeadlineExceeded, Error, Exhausted
from imagetasks_server.reader import Ear, Read
from imagetasks_server.selection import Selection
from imagetasks_server.tally import How, Tally
from imagetasks_server.targets import Target
from imagetasks_server.tracked import Tracked
from imagetasks_server.view import View

# An unfinished target gets its outcome this long before the caller's deadline, so that the rest arrives.
_MARGIN_SECONDS = 0.5
_MARGIN_PART = 0.1

_HOW = {pb.SOURCE_CACHED: How.CACHED, pb.SOURCE_STALE: How.STALE, pb.SOURCE_NONE: How.NONE}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the targets.

    Attributes:
        selection: Which tasks.
        not_before: Unix seconds; states read before then are too old.
        forbid_stale: Rather no state than one that is too old.
        deadline: Unix seconds at which the answer must be there.
        stale_after: Unix seconds; states read before then are too old even to stand in.
        caller: Who asks; for fairness alone.
        tally: The call's, on which its reads count.
    """

    selection: Selection
    not_before: float
    forbid_stale: bool
    deadline: float
    stale_after: float
    caller: str
    tally: Tally = field(default_factory=Tally)

    def seconds_left(self, clock: Clock) -> float:
        """Seconds until unfinished targets get their outcome."""
        return seconds_before(self.deadline, clock())


def seconds_before(deadline: float, now: float) -> float:
    """Seconds from now in which to be done, so that the answer arrives before the deadline."""
    left = deadline - now
    return max(0.0, left - min(_MARGIN_SECONDS, left * _MARGIN_PART))


@dataclass(slots=True, eq=False)
class Part:
    """One target's part of an answer.

    Attributes:
        target: The target, under the name it was asked by.
        tracked: What is kept of it; None if that cannot be known.
        read: The read it waits or waited for; None if what is known was fresh enough.
        settled: How it ends has been decided.
        source: Where its tasks come from.
        read_time: Unix seconds at which the read began that they are from.
        error: Why it did not answer as asked.
        streamed: The read's pages are passed on while it runs.
    """

    target: Target
    tracked: Tracked | None = None
    read: Read | None = None
    settled: bool = False
    source: "pb.Source.ValueType" = pb.SOURCE_NONE
    read_time: float | None = None
    error: Error | None = None
    streamed: bool = False

    @property
    def view(self) -> View:
        """What is known of the target."""
        assert self.tracked is not None
        return self.tracked.view

    @property
    def has_rows(self) -> bool:
        """Whether the view's tasks belong into the answer."""
        return self.source != pb.SOURCE_NONE and not (self.source == pb.SOURCE_LIVE and self.error)

    def is_fresh(self, question: Question) -> bool:
        """Whether nothing must be read."""
        assert self.tracked is not None
        return self.tracked.reader.is_fresh(question.not_before)

    def answer(self) -> None:
        """It answered as asked."""
        self.settled = True
        self.source = pb.SOURCE_LIVE if self.read else pb.SOURCE_CACHED
        self.read_time = self.view.read_time

    def fail(self, error: Error, question: Question | None = None) -> None:
        """It did not; where there is a question, the last good state may stand in."""
        self.settled = True
        self.error = error.at(self.target.account, self.target.region)
        if self.streamed and self.read is not None and self.read.pages:
            # Live rows are on their way already; older ones would contradict them.
            self.source, self.read_time = pb.SOURCE_LIVE, self.read.started
        elif question is not None and self._may_be_stale(question):
            self.source, self.read_time = pb.SOURCE_STALE, self.view.read_time

    def _may_be_stale(self, question: Question) -> bool:
        if question.forbid_stale or self.tracked is None or self.view.read_time is None:
            return False
        return self.view.read_time >= question.stale_after

    def how(self, tally: Tally) -> How:
        """How it ended, as a call counts it."""
        if self.source == pb.SOURCE_LIVE:
            return How.OWN if self.read is not None and self.read.tally is tally else How.SHARED
        return _HOW[self.source]

    def outcome(self) -> pb.TargetOutcome:
        """How it ended, as in the contract."""
        outcome = pb.TargetOutcome(target=self.target.message(), source=self.source)
        if self.error is not None:
            outcome.status.CopyFrom(self.error.status())
        if self.read_time is not None:
            outcome.read_time.CopyFrom(timestamp(self.read_time))
        return outcome


async def progress(parts: Sequence[Part], question: Question, clock: Clock) -> AsyncGenerator[Part]:
    """Each part when it has news: pages of its read, and at last how it ended (`settled`).

    What is fresh enough is settled at once. For the rest a read is joined; all reads are left again when
    the iteration ends, wherever it ends.
    """
    with contextlib.closing(_Reading(question.tally)) as reading:
        for part in _begin(parts, reading, question, question.seconds_left(clock)):
            yield part
        while reading and (news := await reading.news(question.seconds_left(clock))):
            for read in news:
                for part in reading.ended(read) if read.done else reading.parts(read):
                    if read.error is not None:
                        part.fail(read.error, question)
                    elif read.done:
                        part.answer()
                    yield part
        for part in reading.unfinished():
            part.fail(_too_late_for(part), question)
            yield part


def _begin(parts: Sequence[Part], reading: "_Reading", question: Question, seconds: float) -> list[Part]:
    """Settle what can be settled at once, join reads for the rest; what was settled."""
    settled = []
    for part in parts:
        if part.is_fresh(question):
            part.answer()
            settled.append(part)
        else:
            reading.join(part, question.not_before)
    # Who cannot be served in time need not wait to hear it.
    for part in reading.unaffordable(seconds):
        part.fail(_too_late_for(part), question)
        settled.append(part)
    return settled


def too_late() -> Error:
    """The target had no answer in time."""
    return DeadlineExceeded("DEADLINE", "the target had not answered when the call's deadline was near")


def _too_late_for(part: Part) -> Error:
    """Why a part had no answer in time: the budget, with the true wait, or the target itself."""
    if part.tracked is None or part.read is None or not part.read.paying:
        return too_late()
    wait = part.tracked.budget.wait()
    return Exhausted(
        "BUDGET_EXHAUSTED",
        f"EC2's allowance for this target must recover first; it can be asked in {wait:.1f} s",
        retry_after=wait,
    )


class _Reading:
    """The reads a caller has joined; closing leaves them, whatever has become of them."""

    def __init__(self, tally: Tally) -> None:
        self._ear = Ear(tally)
        self._parts: dict[Read, list[Part]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def join(self, part: Part, not_before: float) -> None:
        assert part.tracked is not None
        part.read = part.tracked.reader.join(not_before, self._ear)
        # Two names of one account wait for the same read.
        self._parts.setdefault(part.read, []).append(part)

    async def news(self, seconds: float) -> list[Read]:
        """Wait for reads that have a page more or have ended; none when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ear.news()
        except TimeoutError:
            return []

    def unaffordable(self, seconds: float) -> list[Part]:
        """Leave the reads that the budget cannot begin within this time; their parts."""
        late = [
            read
            for read, parts in self._parts.items()
            if read.started is None and parts[0].tracked and parts[0].tracked.budget.wait() > seconds
        ]
        return [part for read in late for part in self.ended(read)]

    def parts(self, read: Read) -> list[Part]:
        return self._parts.get(read, [])

    def ended(self, read: Read) -> list[Part]:
        parts = self._parts.pop(read, [])
        self._leave(read, parts)
        return parts

    def unfinished(self) -> list[Part]:
        return [part for parts in self._parts.values() for part in parts]

    def close(self) -> None:
        while self._parts:
            self._leave(*self._parts.popitem())

    def _leave(self, read: Read, parts: Sequence[Part]) -> None:
        for part in parts[:1]:
            assert part.tracked is not None
            part.tracked.reader.leave(read, self._ear)
