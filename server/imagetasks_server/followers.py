"""Everybody who follows, and the end of following when the process stops."""

import contextlib
from collections.abc import Iterable, Iterator

from imagetasks_server.follow import Subscription
from imagetasks_server.selection import Selection
from imagetasks_server.targets import Target
from imagetasks_server.ticks import Ticks
from imagetasks_server.tracked import Registry
from imagetasks_server.view import Revisions


class Followers:
    """Opens subscriptions, and wakes them all for the last time.

    Args:
        registry: The views.
        revisions: The process's counter of changes.
        ticks: Wake those whose time is over.

    Attributes:
        registry: As given.
        ticks: As given.
        draining: The process stops; whoever follows must end.
    """

    def __init__(self, registry: Registry, revisions: Revisions, ticks: Ticks) -> None:
        self.registry = registry
        self.ticks = ticks
        self.draining = False
        self._revisions = revisions
        self._open: set[Subscription] = set()

    @property
    def revision(self) -> int:
        """The newest change of all views."""
        return self._revisions.last

    def drain(self) -> None:
        """End every watch and wait in order."""
        self.draining = True
        for subscription in self._open:
            subscription.wake()

    @contextlib.contextmanager
    def subscription(
        self,
        selection: Selection,
        targets: Iterable[Target],
        *,
        not_before: float,
        revision: int = 0,
        covered: Iterable[Target] = (),
    ) -> Iterator[Subscription]:
        """Follow these targets as long as the context lasts.

        Args:
            selection: Which tasks.
            targets: Of which targets.
            not_before: Unix seconds; snapshots are of states read then or later.
            revision: Where to go on.
            covered: Targets whose tasks are held as of the revision.
        """
        subscription = Subscription(
            selection, self._revisions, self.ticks, not_before=not_before, revision=revision
        )
        held = set(covered)
        try:
            for target in targets:
                subscription.follow(target, self.registry.of(target), covered=target in held)
            self._open.add(subscription)
            yield subscription
        finally:
            # Synchronous: when a client leaves, the first await of a cleanup may be cancelled.
            self._open.discard(subscription)
            subscription.close()
