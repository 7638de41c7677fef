"""What the gateway keeps of each target: one view, one budget, one reader, whoever asks.

Kept until nobody has asked for `keep_unused_for`, or until there are more than `keep_tasks` tasks in
all, then those unused for longest go first. Budgets stay: forgetting one would make its tokens anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from imagetasks_server.budget import Budget
from imagetasks_server.clock import Clock
from imagetasks_server.lookups import Lookups
from imagetasks_server.poller import Poller
from imagetasks_server.reader import Reader
from imagetasks_server.targets import Target, TargetKey
from imagetasks_server.view import View

# Seconds between looks at what may be forgotten.
FORGET_EVERY: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """Everything about one (partition, account id, Region)."""

    view: View
    budget: Budget
    reader: Reader
    lookups: Lookups
    poller: Poller

    @property
    def is_idle(self) -> bool:
        """Whether nobody asks or follows."""
        return self.reader.is_idle and self.lookups.is_idle and self.poller.is_idle

    async def close(self) -> None:
        """End what runs; whoever waits is told."""
        await self.poller.close()
        await self.reader.close()
        await self.lookups.close()


class Registry:
    """All tracked targets, each made when first asked for.

    Args:
        make: Makes one, upon its budget.
        make_budget: Makes a budget.
        clock: Unix seconds.
        keep_unused_for: Seconds.
        keep_tasks: Tasks in all.
    """

    def __init__(
        self,
        make: Callable[[Target, Budget], Tracked],
        make_budget: Callable[[], Budget],
        clock: Clock,
        *,
        keep_unused_for: float,
        keep_tasks: int,
    ) -> None:
        self._make = make
        self._make_budget = make_budget
        self._clock = clock
        self._keep_unused_for = keep_unused_for
        self._keep_tasks = keep_tasks
        self._tracked: dict[TargetKey, Tracked] = {}
        self._used: dict[TargetKey, float] = {}
        self._budgets: dict[TargetKey, Budget] = {}
        self._look_at = clock() + FORGET_EVERY

    def __iter__(self) -> Iterator[Tracked]:
        return iter(self._tracked.values())

    def of(self, target: Target) -> Tracked:
        """The target's, shared by all names of its account."""
        key, now = target.key, self._clock()
        tracked = self._tracked.get(key)
        if tracked is None:
            tracked = self._tracked[key] = self._make(target, self.budget_of(target))
        self._used[key] = now
        if now >= self._look_at:
            self._look_at = now + FORGET_EVERY
            self._forget(now)
        return tracked

    def peek(self, target: Target) -> Tracked | None:
        """The target's, if there is one. It does not count as used."""
        return self._tracked.get(target.key)

    def budget_of(self, target: Target) -> Budget:
        """The target's budget, which is there before and after all else that is kept of it."""
        budget = self._budgets.get(target.key)
        if budget is None:
            budget = self._budgets[target.key] = self._make_budget()
        return budget

    async def close(self) -> None:
        """End all reads; whoever waits for one is told."""
        for tracked in self:
            await tracked.close()

    def _forget(self, now: float) -> None:
        tasks = sum(len(tracked.view) for tracked in self)
        last_use = {key: self._last_use(key, now) for key in self._tracked}
        for key in sorted(last_use, key=lambda key: last_use[key]):
            used = last_use[key]
            if used >= now or (now - used < self._keep_unused_for and tasks <= self._keep_tasks):
                break
            tasks -= len(self._tracked.pop(key).view)
            del self._used[key]

    def _last_use(self, key: TargetKey, now: float) -> float:
        """Whoever follows uses it all the time."""
        tracked = self._tracked[key]
        return max(self._used[key], tracked.poller.left_at) if tracked.is_idle else now
