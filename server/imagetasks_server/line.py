"""What one watch is told, as messages; what many are told alike is built once.

Watches of one question at one place share a group and its messages, and their heartbeats.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import Error
from imagetasks_server.follow import Change, Group, Place, Subscription
from imagetasks_server.followers import Followers
from imagetasks_server.permission import Permission
from imagetasks_server.targets import Resolution, Target
from imagetasks_server.tokens import ResumeToken, digest_of

MAX_MESSAGE_BYTES: Final = 256 * 1024
# Groups whose messages are kept for other watches.
MAX_SHARED: Final = 64

Response = pb.WatchStoreImageTasksResponse
News: TypeAlias = tuple[Group, Iterable[Response]]
Kept: TypeAlias = tuple[Group, tuple[Response, ...]]
# A question's fingerprint, its targets' digest, and a place of theirs.
Question: TypeAlias = tuple[str, str, Place]

_NOTHING: Final[News] = (Group(), ())


class Shared:
    """What watches of one question at one place are told alike, built once for all."""

    def __init__(self) -> None:
        self._revision = 0
        self._news: dict[Question, Kept] = {}

    def at(self, revision: int) -> dict[Question, Kept]:
        """What leads to this revision; older news is forgotten."""
        if revision != self._revision or len(self._news) > MAX_SHARED:
            self._revision, self._news = revision, {}
        return self._news


class Line:
    """One watch's messages.

    Args:
        epoch: The process's.
        fingerprint: Of the question.
        subscription: The watch's.
        shared: What other watches are told.
        clock: Unix seconds.
    """

    def __init__(
        self, epoch: str, fingerprint: str, subscription: Subscription, shared: Shared, clock: Clock
    ) -> None:
        self._shared = shared
        self._clock = clock
        self._epoch = epoch
        self._fingerprint = fingerprint
        self._subscription = subscription
        self._digest = digest_of(each.target for each in subscription.followed)
        self._failed: list[Target] = []

    def uncovered(self) -> list[Target]:
        """The targets whose snapshots are still to come, in order."""
        return sorted(self._subscription.uncovered)

    def news(self) -> News:
        """All that the caller does not know yet."""
        subscription = self._subscription
        place = subscription.place()
        if place is None:
            # Nobody else's: each message is made when the one before has been taken.
            group = subscription.gather()
            return group, self.messages(group)
        if not place:
            subscription.skip()
            return _NOTHING
        shared = self._shared.at(subscription.newest)
        question = (self._fingerprint, self._digest, place)
        if (news := shared.get(question)) is not None:
            subscription.skip()
            return news
        group = subscription.gather()
        news = shared[question] = (group, tuple(self.messages(group)))
        return news

    def messages(self, group: Group) -> Iterator[Response]:
        """A group: forget first, then the changes, then what is covered with them, then who is stale."""
        if group.reset:
            yield self.reset(group.reset)
        if not group:
            return
        token = self._token()
        # As of now: a caller may be long in taking what comes first.
        statuses = [
            _status(followed.target, error, followed.tracked.view.read_time)
            for followed, error in group.statuses
        ]
        more: Response | None = None
        for changes in _batches(group.changes):
            if more is not None:
                yield more
            more = Response(changes=Response.Changes(changes=changes, continued=True))
        if group.covered:
            if more is not None:
                yield more
            covered = [target.message() for target in sorted(group.covered)]
            yield Response(snapshot_complete=Response.SnapshotComplete(targets=covered), resume_token=token)
        elif more is not None:
            more.changes.continued = False
            more.resume_token = token
            yield more
        yield from statuses

    def retarget(
        self, resolution: Resolution, permission: Permission, followers: Followers
    ) -> Iterator[Response]:
        """Follow what came, take back what went, and say so."""
        subscription = self._subscription
        before = {each.target for each in subscription.followed}
        # A discovery that failed takes nothing away.
        failed = {target.account for target, _ in resolution.failed}
        kept = {each for each in before if each.account in failed}
        kept = {each for each in kept if permission.allows(each.account, each.region)}
        wanted = set(resolution.targets) | kept
        for target in wanted - before:
            subscription.follow(target, followers.registry.of(target))
        lost = Group()
        for target in sorted(before - wanted):
            subscription.unfollow(target, lost)
        if wanted == before:
            return
        self._digest = digest_of(wanted)
        yield from self.messages(lost)
        followed = [target.message() for target in sorted(wanted)]
        yield Response(targets_changed=Response.TargetsChanged(targets=followed))

    def failures(self, resolution: Resolution) -> list[Response]:
        """Whole accounts that cannot be followed, when there is news of them."""
        failed = [target for target, _ in resolution.failed]
        news = [
            _status(target, error, None) for target, error in resolution.failed if target not in self._failed
        ]
        news += [_status(target, None, None) for target in self._failed if target not in failed]
        self._failed = failed
        return news

    def resets(self, token: ResumeToken | None, covered: Sequence[Target] | None) -> list[Response]:
        """What the caller must forget at the start: all, or what it holds a part of."""
        if token is None or (covered is not None and not token.uncovered):
            return []
        return [self.reset(() if covered is None else self.uncovered())]

    def reset(self, targets: Iterable[Target]) -> Response:
        """That these targets must be forgotten; none: all."""
        return Response(reset=Response.Reset(targets=[target.message() for target in targets]))

    def heartbeat(self) -> Response:
        """That all news has been told."""
        subscription = self._subscription
        if subscription.uncovered:
            return self._heartbeat()
        shared = self._shared.at(subscription.revision)
        # As news from no place in particular.
        question = (self._fingerprint, self._digest, ())
        news = shared.get(question)
        if news is None:
            news = shared[question] = (Group(), (self._heartbeat(),))
        return news[1][0]

    def _heartbeat(self) -> Response:
        return Response(heartbeat=Response.Heartbeat(), resume_token=self._token())

    def closing(self, reason: "Response.Closing.Reason.ValueType") -> Response:
        """The last message."""
        return Response(closing=Response.Closing(reason=reason), resume_token=self._token())

    def _token(self) -> str:
        uncovered = tuple((target.account, target.region) for target in self.uncovered())
        revision = self._subscription.revision
        token = ResumeToken(
            self._fingerprint, self._epoch, revision, self._digest, uncovered, as_of=self._clock()
        )
        return token.encode()


def _batches(changes: Sequence[Change]) -> Iterator[list[pb.TaskChange]]:
    """In messages that stay below the limit, each of at least one change."""
    batch: list[pb.TaskChange] = []
    size = 0
    for change in changes:
        bytes_ = change.task.ByteSize() + 16
        if batch and size + bytes_ > MAX_MESSAGE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(pb.TaskChange(type=change.type, removal_reason=change.reason, task=change.task))
        size += bytes_
    if batch:
        yield batch


def _status(target: Target, error: Error | None, read_time: float | None) -> Response:
    status = Response.TargetStatus(target=target.message())
    if error is not None:
        status.status.CopyFrom(error.at(target.account, target.region).status())
    if read_time is not None:
        status.read_time.CopyFrom(timestamp(read_time))
    return Response(target_status=status)
