"""WaitStoreImageTasks: return when every selected task has ended.

It looks at views as a watch does, on reads that started after the request: a task created just before
is seen, and a thousand who wait are one reader.
"""

import heapq
import itertools
from collections.abc import Iterable
from typing import Final

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import DeadlineExceeded, Error
from imagetasks_server.follow import Followed, Group, Subscription
from imagetasks_server.followers import Followers
from imagetasks_server.selection import Selection
from imagetasks_server.tally import Tally
from imagetasks_server.targets import RETRY_AFTER, Resolution, Targets
from imagetasks_server.watching import Asked

MAX_TASKS: Final = 1000

Response = pb.WaitStoreImageTasksResponse


class Waiting:
    """Answers waits.

    Args:
        followers: Everybody who follows.
        targets: Which targets there are.
        clock: Unix seconds.
    """

    def __init__(self, followers: Followers, targets: Targets, clock: Clock) -> None:
        self._followers = followers
        self._targets = targets
        self._clock = clock

    async def wait(
        self, asked: Asked, access: Access, *, until: float, wait_for_appearance: bool, tally: Tally
    ) -> Response:
        """Return when all has ended, or say why not.

        Args:
            asked: Which tasks.
            access: What the caller may see.
            until: Unix seconds at which to give up.
            wait_for_appearance: That nothing matches is no answer yet.
            tally: The call's.
        """
        began = self._clock()
        permission = access.permission
        resolution = await self._targets.resolve(asked.accounts, asked.regions, permission=permission)
        tally.asks(resolution.targets)
        with (
            self._followers.subscription(
                asked.selection, resolution.targets, not_before=began
            ) as subscription,
            access.listening(subscription.wake),
        ):
            while True:
                reason = self._reason(asked, subscription, resolution, began, appear=wait_for_appearance)
                if reason is None and self._clock() >= until:
                    reason = Response.REASON_TIMEOUT
                if reason is not None and access.permission is permission:
                    return _response(asked.selection, subscription.followed, resolution, began, reason)
                if access.permission is permission:
                    seconds = until - self._clock()
                    # What could not be found out is tried again, and followed when it is.
                    await subscription.moved(min(RETRY_AFTER, seconds) if resolution.failed else seconds)
                if resolution.failed or access.permission is not permission:
                    permission = access.permission
                    resolution = await self._targets.resolve(
                        asked.accounts, asked.regions, wait=False, permission=permission
                    )
                    self._retarget(subscription, resolution)

    def _retarget(self, subscription: Subscription, resolution: Resolution) -> None:
        """Follow what came, and no more what went."""
        known = {each.target for each in subscription.followed}
        for target in resolution.targets:
            if target not in known:
                subscription.follow(target, self._followers.registry.of(target))
        unknown = {target.account for target, _ in resolution.failed}
        for target in known.difference(resolution.targets):
            if target.account not in unknown:
                subscription.unfollow(target, Group())

    def _reason(
        self, asked: Asked, subscription: Subscription, resolution: Resolution, began: float, *, appear: bool
    ) -> "Response.Reason.ValueType | None":
        """Why to answer now, UNSPECIFIED if all has ended; None: not yet."""
        if self._followers.draining:
            return Response.REASON_DRAINING
        # What was not read, or cannot be, may hide a task that runs.
        if resolution.failed or any(not _is_read(each, began) for each in subscription.followed):
            return None
        if any(_runs(each, asked.selection) for each in subscription.followed):
            return None
        if any(_has_task(each, asked.selection) for each in subscription.followed):
            return Response.REASON_UNSPECIFIED
        return None if appear else Response.REASON_NOTHING_MATCHES


def _is_read(followed: Followed, began: float) -> bool:
    reader = followed.tracked.reader
    return reader.last_error is None and reader.is_fresh(began)


def _runs(followed: Followed, selection: Selection) -> bool:
    return any(selection.matches(entry.task) for entry in followed.tracked.view.unfinished())


def _has_task(followed: Followed, selection: Selection) -> bool:
    return next(iter(followed.tracked.view.selected(selection)), None) is not None


def _response(
    selection: Selection,
    followed: Iterable[Followed],
    resolution: Resolution,
    began: float,
    reason: "Response.Reason.ValueType",
) -> Response:
    followed = sorted(followed, key=lambda each: each.target)
    streams = (
        [(entry.order, each, entry) for entry in each.tracked.view.selected(selection)] for each in followed
    )
    rows = heapq.merge(*streams, key=lambda row: row[0])
    outcomes = [_outcome(each, began) for each in followed]
    outcomes += [
        pb.TargetOutcome(target=target.message(), source=pb.SOURCE_NONE, status=error.status())
        for target, error in resolution.failed
    ]
    return Response(
        done=reason == Response.REASON_UNSPECIFIED,
        reason=reason,
        store_image_task_results=[
            each.target.named(entry.task) for _, each, entry in itertools.islice(rows, MAX_TASKS)
        ],
        target_outcomes=outcomes,
    )


def _outcome(followed: Followed, began: float) -> pb.TargetOutcome:
    target, view = followed.target, followed.tracked.view
    outcome = pb.TargetOutcome(target=target.message())
    if view.read_time is not None:
        outcome.read_time.CopyFrom(timestamp(view.read_time))
    if _is_read(followed, began):
        outcome.source = pb.SOURCE_LIVE
        return outcome
    outcome.source = pb.SOURCE_NONE if view.read_time is None else pb.SOURCE_STALE
    error = followed.tracked.reader.last_error or _unread()
    outcome.status.CopyFrom(error.at(target.account, target.region).status())
    return outcome


def _unread() -> Error:
    return DeadlineExceeded("DEADLINE", "the target was not read in time")
