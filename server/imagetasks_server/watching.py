"""WatchStoreImageTasks: what a subscription's groups are on the wire, heartbeats, resuming, the end.

A watch's targets are resolved anew as often as heartbeats come, however much there is to tell: an account
or Region that came is followed with a snapshot of its own, one that went is taken back task by task. So it
is at once when the caller's permission changes.
"""

import functools
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.duration_pb2 import Duration

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.clock import Clock, timestamp
from imagetasks_server.errors import Error, OutOfRange
from imagetasks_server.follow import Change, Group, Place, Subscription
from imagetasks_server.followers import Followers
from imagetasks_server.metrics import Metrics
from imagetasks_server.permission import Permission
from imagetasks_server.poller import Rhythm
from imagetasks_server.selection import Selection
from imagetasks_server.tally import Tally
from imagetasks_server.targets import Resolution, Target, Targets
from imagetasks_server.tokens import ResumeToken, digest_of

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

MAX_MESSAGE_BYTES: Final = 256 * 1024
# Groups whose messages are kept for other watches.
MAX_SHARED: Final = 64

Response = pb.WatchStoreImageTasksResponse


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller follows.

    Attributes:
        selection: Which tasks.
        accounts: Of which accounts; empty: all.
        regions: In which Regions; empty: all.
        fingerprint: Of all this.
    """

    selection: Selection
    accounts: Sequence[str]
    regions: Sequence[str]
    fingerprint: str

    def of(self, resolution: Resolution) -> Resolution:
        """What is asked for, of this."""
        return Resolution(
            tuple(each for each in resolution.targets if self._means(each)),
            tuple(each for each in resolution.failed if self._means(each[0])),
        )

    def _means(self, target: Target) -> bool:
        if self.accounts and target.account not in self.accounts:
            return False
        # A whole account may have any Region.
        return not self.regions or not target.region or target.region in self.regions


class Watching:
    """Answers watches.

    Args:
        followers: Everybody who follows.
        targets: Which targets there are.
        clock: Unix seconds.
        rhythm: How often followed targets are read.
        heartbeat: Seconds after which a caller who is caught up hears so again.
        lifetime: Seconds that a new watch lasts, another number each time.
        metrics: Count what is told.
        tracer: Traces it, if anybody does.
    """

    def __init__(
        self,
        followers: Followers,
        targets: Targets,
        clock: Clock,
        *,
        rhythm: Rhythm,
        heartbeat: float,
        lifetime: Callable[[], float],
        metrics: Metrics,
        tracer: "Tracer | None" = None,
    ) -> None:
        self._followers = followers
        self._targets = targets
        self._clock = clock
        self._rhythm = rhythm
        self._heartbeat = heartbeat
        self._lifetime = lifetime
        self._metrics = metrics
        self._tracer = tracer
        # Revisions of another process mean nothing here.
        self._epoch = uuid.uuid4().hex[:12]
        self._shared = _Shared()

    async def watch(
        self, asked: Asked, token: ResumeToken | None, access: Access, *, require_resume: bool, tally: Tally
    ) -> AsyncGenerator[Response]:
        """A snapshot, then changes, until the caller leaves or the gateway says goodbye.

        It does so when its process stops, when the watch is too old, when the caller's credential expires.

        Raises:
            Error: The targets cannot be resolved, or the token cannot be continued and must be; or nothing
                may be seen any more of what was asked for.
        """
        ends_at = self._clock() + self._lifetime()
        permission = access.permission
        resolution = await self._targets.resolve(asked.accounts, asked.regions, permission=permission)
        # Taken now: a caller may be long in reading even the first message.
        resolved_at = self._clock()
        tally.asks(resolution.targets)
        covered = self._covered(token, resolution)
        if covered is None and token is not None and require_resume:
            raise OutOfRange("RESUME_TOKEN_EXPIRED", "the resume_token cannot be continued here")
        yield self._started(resolution, resumed=covered is not None)
        with (
            self._followers.subscription(
                asked.selection,
                resolution.targets,
                not_before=self._clock() - self._rhythm.busy,
                revision=token.revision if token is not None and covered is not None else 0,
                covered=covered or (),
            ) as subscription,
            access.listening(subscription.wake),
        ):
            line = _Line(self._epoch, asked.fingerprint, subscription, self._shared)
            for message in (*line.resets(token, covered), *line.failures(resolution)):
                yield message
            heard_at = self._clock()
            while (goodbye := self._goodbye(access, ends_at, now := self._clock())) is None:
                messages: list[Response] = []
                ended: Error | None = None
                if access.permission is not permission or now >= resolved_at + self._heartbeat:
                    permission = access.permission
                    resolution, ended = await self._again(asked, permission)
                    resolved_at = self._clock()
                    tally.asks(resolution.targets)
                    # Before anything else is told: what has ended is told no more of.
                    lost = line.retarget(resolution, permission, self._followers)
                    messages += [*line.failures(resolution), *line.messages(lost)]
                group, news = line.news()
                messages += news
                if not messages and now >= heard_at + self._heartbeat:
                    messages.append(line.heartbeat())
                for message in messages:
                    yield message
                    heard_at = self._clock()
                self._told(group, tally)
                if ended is not None:
                    raise ended
                due = min(heard_at + self._heartbeat, resolved_at + self._heartbeat, access.expires, ends_at)
                # What has moved meanwhile ends it at once.
                await subscription.moved(due - self._clock())
            yield line.closing(goodbye)

    def _goodbye(
        self, access: Access, ends_at: float, now: float
    ) -> "Response.Closing.Reason.ValueType | None":
        """Why the watch ends now; None if it goes on."""
        if self._followers.draining:
            return Response.Closing.REASON_DRAINING
        if now >= access.expires:
            return Response.Closing.REASON_CREDENTIAL_EXPIRED
        return Response.Closing.REASON_MAX_AGE if now >= ends_at else None

    async def _again(self, asked: Asked, permission: Permission) -> tuple[Resolution, Error | None]:
        """What is meant now, and why the watch must end once that was told: nothing is left."""
        # Without waiting: an account that cannot be found out delays no news of the others.
        resolve = functools.partial(self._targets.resolve, wait=False, permission=permission)
        try:
            return await resolve(asked.accounts, asked.regions), None
        except Error as error:
            try:
                left = asked.of(await resolve((), ()))
            except Error:
                left = Resolution(())
            return left, None if left.targets or left.failed else error

    def _told(self, group: Group, tally: Tally) -> None:
        """All messages of a group have been taken by gRPC."""
        if not group.changes:
            return
        tally.changes += len(group.changes)
        self._metrics.changes_told(len(group.changes))
        if group.covered:
            # A snapshot is as old as the view that was there.
            return
        now = self._clock()
        lag = max(0.0, now - group.began)
        if tally.lag is None or lag > tally.lag:
            tally.lag = lag
        self._metrics.watch_lag(lag)
        if self._tracer is not None:
            self._tracer.told(tally, changes=len(group.changes), began=group.began, ended=now)

    def _covered(self, token: ResumeToken | None, resolution: Resolution) -> list[Target] | None:
        """The targets that the caller holds as of the token; None if the token means nothing here."""
        if token is None or token.epoch != self._epoch or token.revision > self._followers.revision:
            return None
        if token.targets != digest_of(resolution.targets):
            return None
        uncovered = set(token.uncovered)
        return [each for each in resolution.targets if (each.account, each.region) not in uncovered]

    def _started(self, resolution: Resolution, *, resumed: bool) -> Response:
        return Response(
            started=Response.Started(
                resumed=resumed,
                heartbeat_interval=_duration(self._heartbeat),
                poll_interval=_duration(self._rhythm.busy),
                idle_poll_interval=_duration(self._rhythm.idle),
                targets=[target.message() for target in resolution.targets],
            )
        )


News: TypeAlias = tuple[Group, tuple[Response, ...]]


class _Shared:
    """The newest groups and their messages, built once for all watches of one question at one place."""

    def __init__(self) -> None:
        self._revision = 0
        self._news: dict[tuple[str, str, Place], News] = {}

    def at(self, revision: int) -> dict[tuple[str, str, Place], News]:
        """Those that lead to this revision; older ones are forgotten."""
        if revision != self._revision or len(self._news) > MAX_SHARED:
            self._revision, self._news = revision, {}
        return self._news


class _Line:
    """One watch's messages."""

    def __init__(self, epoch: str, fingerprint: str, subscription: Subscription, shared: _Shared) -> None:
        self._shared = shared
        self._epoch = epoch
        self._fingerprint = fingerprint
        self._subscription = subscription
        self._digest = digest_of(each.target for each in subscription.followed)
        self._failed: list[Target] = []

    def uncovered(self) -> list[Target]:
        return sorted(self._subscription.uncovered)

    def news(self) -> News:
        """All that the caller does not know yet."""
        subscription = self._subscription
        place = subscription.place()
        if place is None:
            return self._gathered()
        if not place:
            subscription.skip()
            return Group(), ()
        shared = self._shared.at(subscription.newest)
        question = (self._fingerprint, self._digest, place)
        news = shared.get(question)
        if news is None:
            news = shared[question] = self._gathered()
        else:
            subscription.skip()
        return news

    def _gathered(self) -> News:
        group = self._subscription.gather()
        return group, tuple(self.messages(group))

    def messages(self, group: Group) -> Iterator[Response]:
        """A group: forget first, then the changes, then what is covered with them, then who is stale."""
        if group.reset:
            yield self.reset(group.reset)
        if not group:
            return
        token = self._token()
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
        for followed, error in group.statuses:
            yield _status(followed.target, error, followed.tracked.view.read_time)

    def retarget(self, resolution: Resolution, permission: Permission, followers: Followers) -> Group:
        """Follow what came, take back what went."""
        subscription = self._subscription
        before = {each.target for each in subscription.followed}
        # A discovery that failed takes nothing away.
        failed = {target.account for target, _ in resolution.failed}
        kept = {each for each in before if each.account in failed}
        kept = {each for each in kept if permission.allows(each.account, each.region)}
        wanted = set(resolution.targets) | kept
        for target in wanted - before:
            subscription.follow(target, followers.registry.of(target))
        if wanted != before:
            self._digest = digest_of(wanted)
        lost = Group()
        for target in sorted(before - wanted):
            subscription.unfollow(target, lost)
        return lost

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
        return Response(reset=Response.Reset(targets=[target.message() for target in targets]))

    def heartbeat(self) -> Response:
        return Response(heartbeat=Response.Heartbeat(), resume_token=self._token())

    def closing(self, reason: "Response.Closing.Reason.ValueType") -> Response:
        return Response(closing=Response.Closing(reason=reason), resume_token=self._token())

    def _token(self) -> str:
        uncovered = tuple((target.account, target.region) for target in self.uncovered())
        revision = self._subscription.revision
        return ResumeToken(self._fingerprint, self._epoch, revision, self._digest, uncovered).encode()


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


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration
