"""WatchStoreImageTasks: what a subscription's groups are on the wire, heartbeats, resuming, the end.

A watch's targets are resolved anew as often as heartbeats come, however much there is to tell: an account
or Region that came is followed with a snapshot of its own, one that went is taken back task by task. So it
is at once when the caller's permission changes.
"""

import functools
import itertools
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, OutOfRange
from imagetasks_server.follow import Group
from imagetasks_server.followers import Followers
from imagetasks_server.line import Line, Shared
from imagetasks_server.metrics import Metrics
from imagetasks_server.permission import Permission
from imagetasks_server.poller import Rhythm
from imagetasks_server.selection import Selection
from imagetasks_server.tally import Tally
from imagetasks_server.targets import Resolution, Target, Targets
from imagetasks_server.tokens import ResumeToken, digest_of

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer

# In a heartbeat interval. More: heartbeats come more evenly; fewer: each costs less.
TICKS: Final = 100
# Questions of which is kept what they meant.
MAX_KEPT: Final = 64

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


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a question means, for a permission, found out at so many Unix seconds."""

    resolution: Resolution
    permission: Permission
    at: float


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
        self._shared = Shared()
        # By fingerprint: what it meant last.
        self._meanings: dict[str, _Meaning] = {}
        # A tick early, and the loop's time is not exact: what is due so soon is due.
        self._patience = heartbeat - 2 * followers.ticks.seconds

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
        resolution = await access.guard(
            lambda: self._targets.resolve(asked.accounts, asked.regions, permission=permission)
        )
        # Taken now: a caller may be long in reading even the first message.
        meaning = _Meaning(resolution, permission, self._clock())
        tally.asks(resolution.targets)
        covered = self._covered(token, resolution)
        if require_resume and token is not None and not self._goes_on(token, covered):
            raise OutOfRange("RESUME_TOKEN_EXPIRED", "the resume_token cannot be continued here")
        yield self._started(resolution, resumed=covered is not None)
        with (
            self._followers.subscription(
                asked.selection,
                resolution.targets,
                not_before=self._not_before(token if covered is None else None),
                revision=token.revision if token is not None and covered is not None else 0,
                covered=covered or (),
            ) as subscription,
            access.listening(subscription.wake),
        ):
            line = Line(self._epoch, asked.fingerprint, subscription, self._shared, self._clock)
            for message in (*line.resets(token, covered), *line.failures(resolution)):
                access.check()
                yield message
            heard_at = now = self._clock()
            while now < (until := min(ends_at, access.expires)) and not self._followers.draining:
                access.check()
                first: Sequence[Response] = ()
                ended: Error | None = None
                quiet_for = self._patience
                if access.permission is not meaning.permission or now >= meaning.at + quiet_for:
                    before, (meaning, ended) = meaning, await self._again(asked, access.permission, now)
                    # Before anything else is told: what has ended is told no more of.
                    first = self._retargeted(line, before, meaning, tally)
                    # From here on one wake-up does for both.
                    quiet_for /= 2
                group, news = line.news()
                messages = itertools.chain(first, news) if first else news
                if not first and not group and now >= heard_at + quiet_for:
                    messages = (line.heartbeat(),)
                is_quiet = True
                for message in messages:
                    yield message
                    is_quiet = False
                    access.check()
                if not is_quiet:
                    heard_at = now = self._clock()
                if group.changes:
                    self._told(group, tally, now)
                if ended is not None:
                    raise ended
                # What has moved meanwhile ends it at once.
                await subscription.moved(min(min(heard_at, meaning.at) + self._heartbeat, until) - now)
                now = self._clock()
            access.check()
            yield line.closing(self._goodbye(access, now))

    def _goodbye(self, access: Access, now: float) -> "Response.Closing.Reason.ValueType":
        """Why the watch ends now."""
        if self._followers.draining:
            return Response.Closing.REASON_DRAINING
        if now >= access.expires:
            return Response.Closing.REASON_CREDENTIAL_EXPIRED
        return Response.Closing.REASON_MAX_AGE

    async def _again(self, asked: Asked, permission: Permission, now: float) -> tuple[_Meaning, Error | None]:
        """What is meant now, and why the watch must end once that was told: nothing is left."""
        known = self._meanings.get(asked.fingerprint)
        if (
            known is not None
            and known.permission is permission
            and now < known.at + self._followers.ticks.seconds
        ):
            return known, None
        # Without waiting: an account that cannot be found out delays no news of the others.
        resolve = functools.partial(self._targets.resolve, wait=False, permission=permission)
        try:
            resolution = await resolve(asked.accounts, asked.regions)
        except Error as error:
            try:
                left = asked.of(await resolve((), ()))
            except Error:
                left = Resolution(())
            return _Meaning(left, permission, now), None if left.targets or left.failed else error
        if known is not None and known.resolution == resolution:
            # The very same, so that each watch sees at a glance that nothing is new.
            resolution = known.resolution
        elif len(self._meanings) >= MAX_KEPT:
            self._meanings.clear()
        meaning = self._meanings[asked.fingerprint] = _Meaning(resolution, permission, now)
        return meaning, None

    def _retargeted(self, line: Line, before: _Meaning, meaning: _Meaning, tally: Tally) -> list[Response]:
        """Follow what is meant now; what there is to tell of that."""
        resolution, permission = meaning.resolution, meaning.permission
        if resolution is before.resolution and permission is before.permission:
            return []
        tally.asks(resolution.targets)
        changed = tuple(line.retarget(resolution, permission, self._followers))
        return [*changed, *line.failures(resolution)]

    def _told(self, group: Group, tally: Tally, now: float) -> None:
        """All messages of a group, which has changes, have been taken by gRPC."""
        count = len(group.changes)
        tally.changes += count
        self._metrics.changes_told(count)
        if group.covered:
            # A snapshot is as old as the view that was there.
            return
        lag = max(0.0, now - group.began)
        if tally.lag is None or lag > tally.lag:
            tally.lag = lag
        self._metrics.watch_lag(lag)
        if self._tracer is not None:
            self._tracer.told(tally, changes=count, began=group.began, ended=now)

    def _not_before(self, foreign: ResumeToken | None) -> float:
        """Unix seconds: what a snapshot shows was read then or later.

        Who comes from another process with its token gets nothing older than what it holds.
        """
        now = self._clock()
        known = now - self._rhythm.busy
        return known if foreign is None else max(known, min(foreign.as_of, now))

    def _goes_on(self, token: ResumeToken, covered: Sequence[Target] | None) -> bool:
        """Whether all that has changed since the token can be told."""
        if covered is None:
            return False
        followed = (self._followers.registry.of(target) for target in covered)
        return all(token.revision >= tracked.view.floor for tracked in followed)

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


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration
