"""Time that a test owns.

`run` is for tests without sockets, threads or processes. Its time stands still while anything can run
and jumps to the next timer when nothing can, so an hour's sleep costs nothing and every run is the same:

    def test_a_read_that_hangs_is_ended_by_its_time_limit() -> None:
        async def scenario(clock: VirtualClock) -> None:
            began = clock()
            await asyncio.sleep(3600)
            assert clock() == began + 3600

        run(scenario)

It is synchronous, so it can be called from within a hypothesis test. `clock` is what the gateway takes
for a `Clock`: unix seconds. A scenario that waits for what can never happen fails with `Deadlock`, and
one that leaves tasks behind fails too.

`SteeredLoop` is for tests with real sockets: its time is the real one, but `clock.advance(60)` moves it
on by a minute at once, with all timers of the loop. gRPC's own deadlines stay real.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Any moment will do; a whole number is easy to read in a failure.
EPOCH: Final = 1_800_000_000.0


class Deadlock(Exception):
    """Everybody waits, no timer is set, and so nothing will ever happen."""


class VirtualClock:
    """Unix seconds of a loop whose time can be moved."""

    def __init__(self, loop: "VirtualLoop | SteeredLoop") -> None:
        self._loop = loop
        self._began = loop.time()

    def __call__(self) -> float:
        return EPOCH + (self._loop.time() - self._began)

    def advance(self, seconds: float) -> None:
        """Move time on at once. Timers that are due then run when the loop next turns."""
        self._loop.skipped += seconds


class _Jumping(selectors.DefaultSelector):
    """Tells its loop to jump instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.jump: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Deadlock("everybody waits and no timer is set")
        self.jump(max(0.0, timeout))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps when it is idle."""

    def __init__(self) -> None:
        self.skipped = 0.0
        selector = _Jumping()
        selector.jump = self._jump
        super().__init__(selector)

    def time(self) -> float:
        return self.skipped

    def _jump(self, seconds: float) -> None:
        self.skipped += seconds


class SteeredLoop(asyncio.SelectorEventLoop):
    """A loop whose time is the real one plus what was skipped."""

    def __init__(self) -> None:
        self.skipped = 0.0
        super().__init__()

    def time(self) -> float:
        return super().time() + self.skipped


def run(scenario: Callable[[VirtualClock], Coroutine[Any, Any, T]], *, debug: bool = True) -> T:
    """Run a scenario to its end in virtual time, and return what it returns.

    Without asyncio's debug mode thousands of scenarios take half the time.

    Raises:
        Deadlock: It waits for what cannot happen.
        AssertionError: It left tasks behind, or an exception that nobody looked at.
    """
    loop = VirtualLoop()
    loop.set_debug(debug)
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    try:
        result = loop.run_until_complete(scenario(VirtualClock(loop)))
        # Callbacks that are on their way, such as those of a task just cancelled.
        loop.run_until_complete(settle())
        left = asyncio.all_tasks(loop)
        assert not left, f"left behind: {left}"
        assert not unseen, f"nobody looked at: {unseen}"
        return result
    finally:
        _clear(loop)


async def settle(turns: int = 20) -> None:
    """Let everything run that can run without time passing."""
    for _ in range(turns):
        await asyncio.sleep(0)


def _clear(loop: VirtualLoop) -> None:
    """Close the loop, whatever state a failed scenario left it in."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=60))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
