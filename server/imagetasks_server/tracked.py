"""What the gateway keeps of each target: one view, one budget, one reader, whoever asks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagetasks_server.budget import Budget
from imagetasks_server.lookups import Lookups
from imagetasks_server.reader import Reader
from imagetasks_server.targets import Target, TargetKey
from imagetasks_server.view import View


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """Everything about one (partition, account id, Region)."""

    view: View
    budget: Budget
    reader: Reader
    lookups: Lookups


class Registry:
    """All tracked targets, each made when first asked for."""

    def __init__(self, make: Callable[[Target], Tracked]) -> None:
        self._make = make
        self._tracked: dict[TargetKey, Tracked] = {}

    def __iter__(self) -> Iterator[Tracked]:
        return iter(self._tracked.values())

    def of(self, target: Target) -> Tracked:
        """The target's, shared by all names of its account."""
        tracked = self._tracked.get(target.key)
        if tracked is None:
            tracked = self._tracked[target.key] = self._make(target)
        return tracked

    async def close(self) -> None:
        """End all reads; whoever waits for one is told."""
        for tracked in self:
            await tracked.reader.close()
            await tracked.lookups.close()
