"""Who asks the gateway in a random world: subscribers that come and go, describes, waits."""

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from facts import Held, Matches, Name
from told import Describe, Sight, Stream, Wait
from virtual import settle

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.errors import Error, Unauthenticated
from imagetasks_server.permission import EVERYTHING, Grant, Permission
from imagetasks_server.service import Call
from imagetasks_server.tokens import ResumeToken, _unpack

if TYPE_CHECKING:
    from world import World

R1, R2 = "eu-one-1", "us-two-1"
SELECTORS: Final[list[tuple[dict[str, Any], Matches]]] = [
    ({}, lambda _: True),
    (
        {"filters": [pb.Filter(name="task-state", values=["InProgress"])]},
        lambda task: task.ec2_store_task_state == "InProgress",
    ),
    (
        {"filters": [pb.Filter(name="task-state", values=["Completed", "F*"])]},
        lambda task: task.ec2_store_task_state in {"Completed", "Failed"},
    ),
    ({"filters": [pb.Filter(name="bucket", values=["b0"])]}, lambda task: task.bucket == "b0"),
]
# Those who ask the same are told the same, each from where it stands.
WHO_ASKS_WHAT: Final = (0, 1, 2, 3, 0, 0)
PERMISSIONS: Final = (
    EVERYTHING,
    Permission("one", (Grant(accounts=("main",)),)),
    Permission("one", (Grant(regions=(R1,)),)),
    Permission("one", (Grant(accounts=("other", "twin")), Grant(("main",), (R2,)))),
    Permission("one", (Grant(accounts=("nobody",)),)),
)
FOREVER: Final = 1e15
PATIENCE: Final = 30.0


class Kept(NamedTuple):
    """A token, what was held at it, when which process gave it, and for what permission if that is clear."""

    process: int
    at: float
    token: str
    held: Held
    permission: Permission | None


class Subscriber:
    """One who watches, holds what he is told, and comes back with his tokens."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.selector, self.matches = SELECTORS[WHO_ASKS_WHAT[number]]
        self.permission = EVERYTHING
        self.tokens: list[Kept] = []
        self.held = Held()
        self.stream: Stream | None = None
        self._access = Access()
        self._reading = asyncio.Event()
        self._reading.set()
        self._task: asyncio.Task[None] | None = None

    def join(self, resumes: str, number: int, *, expires: float = math.inf) -> None:
        """Open a watch, with a token of some kind if there is one."""
        if self._task is not None:
            return
        now = self.world.clock()
        kept = self._token(resumes, number)
        token = kept.token if kept is not None else ""
        stream = Stream(
            self.number,
            self.world.process,
            now,
            self.matches,
            Sight([(now, self.permission)], expires),
            resumes if kept is not None else "",
            kept is not None and number % 3 == 0,
            kept.held.copy() if kept is not None else Held(),
        )
        if kept is not None and resumes == "own":
            stream.since = _unpack(token)[2]
            stream.given, stream.given_for = kept.at, kept.permission
        self.stream = stream
        self.world.history.streams.append(stream)
        self._access = Access(self.permission, expires=expires)
        self._reading.set()
        self._task = asyncio.create_task(self._read(stream, token))

    def _token(self, resumes: str, number: int) -> Kept | None:
        own = [kept for kept in self.tokens if kept.process == self.world.process]
        match resumes:
            case "own" if own:
                return own[-1 - number % min(len(own), 3)]
            case "epoch":
                foreign = [kept for kept in self.tokens if kept.process != self.world.process]
                return foreign[-1] if foreign else None
            case "future" if own:
                question, epoch, revision, targets, *_ = _unpack(own[-1].token)
                future = ResumeToken(question, epoch, revision + 1_000_000, targets)
                return own[-1]._replace(token=future.encode())
            case "damaged" if own:
                token = own[-1].token
                return own[-1]._replace(token=token[:10] + ("A" if token[10] != "A" else "B") + token[11:])
            case "other":
                others = (each for each in self.world.subscribers if each.selector != self.selector)
                return next((each.tokens[-1] for each in others if each.tokens), None)
        return None

    def permit(self, permission: Permission) -> None:
        """From now on he may see something else."""
        self.permission = permission
        if self.stream is not None:
            self.stream.sight.decided.append((self.world.clock(), permission))
            self._access.decide(permission)

    def revoke(self) -> None:
        """His credential is declared void."""
        if self.stream is not None:
            self.stream.sight.revoked = self.world.clock()
            self._access.end(Unauthenticated("CREDENTIAL_INVALID", "the credential is void"))

    def stall(self) -> None:
        if self.stream is not None and self._reading.is_set():
            self._reading.clear()
            self.stream.stalls.append([self.world.clock(), 1e18])

    def read_on(self) -> None:
        if self.stream is not None and not self._reading.is_set():
            self.stream.stalls[-1][1] = self.world.clock()
            self._reading.set()

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.stream is not None:
            # It had not even begun.
            self._ended(self.stream, "left")

    def _ended(self, stream: Stream, how: str) -> None:
        self.read_on()
        stream.end, stream.ended = how, self.world.clock()
        self.stream = self._task = None

    async def _read(self, stream: Stream, token: str) -> None:
        held = self.held = stream.began_with.copy()
        request = pb.WatchStoreImageTasksRequest(
            selector=pb.TaskSelector(**self.selector), resume_token=token, require_resume=stream.requires
        )
        gateway = self.world.gateway
        try:
            events = gateway.service.watch_store_image_tasks(request, Call(FOREVER, access=self._access))
            async with contextlib.aclosing(events):
                async for event in events:
                    now = self.world.clock()
                    stream.events.append((now, event, gateway.followers.revision))
                    held.take(event)
                    if event.resume_token:
                        given_for = stream.sight.settled(stream.awake_since(now, within=0.0))
                        self.tokens.append(
                            Kept(stream.process, now, event.resume_token, held.copy(), given_for)
                        )
                    await self._reading.wait()
        except Error as error:
            self._ended(stream, error.reason)
        except asyncio.CancelledError:
            self._ended(stream, "left")
        else:
            self._ended(stream, "done")


async def describe(world: "World", name: Name, max_age: int) -> None:
    """Ask for a target's tasks. What a read tells is known to all subscribers when it is answered."""
    asked = Describe(world.process, world.clock(), name, max_age, after=len(world.history.rests) - 1)
    world.history.describes.append(asked)
    request = pb.DescribeStoreImageTasksRequest(accounts=[name[0]], regions=[name[1]])
    request.max_age.FromSeconds(max_age)
    call = Call(world.clock() + PATIENCE)
    try:
        answer = await world.gateway.service.describe_store_image_tasks(request, call)
    except Error as error:
        asked.reason = error.reason
    except asyncio.CancelledError:
        asked.reason = "left"
    else:
        told = pb.DescribeStoreImageTasksResponse.FromString(answer)
        asked.tasks = list(told.store_image_task_results)
        if told.target_outcomes[0].source == pb.SOURCE_LIVE:
            happened = world.happened
            await settle()
            # What happens meanwhile is not yet known to all.
            if world.happened == happened:
                asked.rest = world.note_rest()
    asked.ended = world.clock()


async def wait(world: "World", number: int, permission: Permission) -> None:
    """Wait until all has ended that can be seen now, or something matches."""
    selector, matches = SELECTORS[number % len(SELECTORS)]
    seconds = (5, 20, 60)[number % 3]
    now = world.clock()
    access, sight = Access(permission), Sight([(now, permission)])
    asked = Wait(world.process, now, now + seconds, matches, sight, appear=number % 2 == 0)
    world.history.waits.append(asked)
    world.waiting[access] = sight
    request = pb.WaitStoreImageTasksRequest(
        selector=pb.TaskSelector(**selector), wait_for_appearance=asked.appear
    )
    request.timeout.FromSeconds(seconds)
    before = world.unfinished(matches)
    try:
        asked.response = await world.gateway.service.wait_store_image_tasks(
            request, Call(FOREVER, access=access)
        )
    except Error as error:
        asked.reason = error.reason
    except asyncio.CancelledError:
        asked.reason = "left"
    else:
        shown = (each for each in before & world.unfinished(matches) if not world.was_hidden(each[1], now))
        asked.running = frozenset(name for name, _ in shown)
    finally:
        del world.waiting[access]
        asked.ended = world.clock()
