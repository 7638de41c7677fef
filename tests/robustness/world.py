"""A random world and its schedule, run on virtual time and recorded.

A schedule is a list of (what, number, seconds): what happens, to which of those it may happen to, and how
long nothing else does after that.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

from fake_ec2 import Call as Ec2Call
from fake_ec2 import FakeAccount, FakeEc2, FakeWorld, Task, aws_error
from history import Held, History, Rest, Stream, recorded
from hypothesis import strategies as st
from virtual import VirtualClock, run, settle

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import line
from imagetasks_server.assembly import assemble
from imagetasks_server.config import Settings
from imagetasks_server.errors import Error
from imagetasks_server.service import Call
from imagetasks_server.tokens import ResumeToken, _unpack
from imagetasks_server.upstream import Page, Query, ReadPage

Schedule = list[tuple[str, int, float]]

HEARTBEAT: Final = 10.0
BUSY: Final = 5.0
IDLE: Final = 15.0
LINGER: Final = 10.0
READ_TIMEOUT: Final = 20.0
SETTINGS: Final[dict[str, Any]] = {
    "budget": {"capacity": 1e6, "refill": 1e6, "initial": 1e6},
    "poll_interval": BUSY,
    "idle_poll_interval": IDLE,
    "poll_linger": LINGER,
    "heartbeat_interval": HEARTBEAT,
    "read_timeout": READ_TIMEOUT,
    "page_timeout": READ_TIMEOUT / 2,
    "full_read_every": 20.0,
    "stalled_after": 60.0,
    "keep_unused_for": 60.0,
    "distrust_for": 60.0,
}
# So that groups are split.
SMALL_MESSAGE: Final = 500
DAY: Final = 86400.0

Matches = Callable[[pb.StoreImageTaskResult], bool]
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


class Subscriber:
    """One who watches, holds what he is told, and comes back with his tokens."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.selector, self.matches = SELECTORS[WHO_ASKS_WHAT[number]]
        # What was held at each token.
        self.tokens: list[tuple[int, str, Held]] = []
        self.stream: Stream | None = None
        self._reading = asyncio.Event()
        self._reading.set()
        self._task: asyncio.Task[None] | None = None

    def join(self, resumes: str, number: int) -> None:
        """Open a watch, with a token of some kind if there is one."""
        if self._task is not None:
            return
        process = self.world.process
        own = [(token, held) for epoch, token, held in self.tokens if epoch == process]
        foreign = [(token, held) for epoch, token, held in self.tokens if epoch != process]
        token, held = "", Held()
        if resumes == "own" and own:
            token, held = own[-1 - number % min(len(own), 3)]
        elif resumes == "epoch" and foreign:
            token, held = foreign[-1]
        elif resumes in {"future", "damaged"} and own:
            token, held = own[-1]
            if resumes == "future":
                question, epoch, revision, targets, *_ = _unpack(token)
                token = ResumeToken(question, epoch, revision + 1_000_000, targets).encode()
            else:
                token = token[:10] + ("A" if token[10] != "A" else "B") + token[11:]
        elif resumes == "other":
            others = [
                s.tokens[-1] for s in self.world.subscribers if s.tokens and s.selector != self.selector
            ]
            if others:
                _, token, held = others[0]
        now = self.world.clock()
        stream = Stream(
            self.number,
            process,
            now,
            self.matches,
            resumes if token else "",
            held.copy() if token else Held(),
            _unpack(token)[2] if token and resumes == "own" else 0,
        )
        self.stream = stream
        self.world.history.streams.append(stream)
        self._reading.set()
        self._task = asyncio.create_task(self._read(stream, token))

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
        held = stream.began_with.copy()
        request = pb.WatchStoreImageTasksRequest(
            selector=pb.TaskSelector(**self.selector), resume_token=token
        )
        try:
            async with contextlib.aclosing(self.world.open(request)) as events:
                async for event in events:
                    stream.events.append((self.world.clock(), event, self.world.gateway.followers.revision))
                    held.take(event)
                    if event.resume_token:
                        self.tokens.append((stream.process, event.resume_token, held.copy()))
                    await self._reading.wait()
        except Error as error:
            self._ended(stream, error.reason)
        except asyncio.CancelledError:
            self._ended(stream, "left")
        else:
            self._ended(stream, "done")


class World:
    """Three accounts, two of them names of one, and whoever watches."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.process = 0
        self.history = History(HEARTBEAT, BUSY, LINGER, fresh_within=1.2 * IDLE + READ_TIMEOUT)
        self.fake = FakeWorld(clock, {"main": ("r1", "r2"), "other": ("r1",)}, page_size=3)
        self.everybody = dict(self.fake.accounts)
        main = self.everybody["main"]
        self.everybody["twin"] = FakeAccount("twin", main.account_id, ("r1",), main.by_region)
        self.history.ids = {name: account.account_id for name, account in self.everybody.items()}
        self.places = self.fake.all()
        self.subscribers = [Subscriber(self, number) for number in range(len(WHO_ASKS_WHAT))]
        self._hidden: list[tuple[FakeEc2, Task]] = []
        self._holds: list[Any] = []
        self._shifting = True
        for ec2 in self.places:
            ec2.between = self._between(ec2)
            ec2.read_page = self._counting(ec2)  # type: ignore[method-assign,assignment]
            ec2.add(bucket="b0")
            ec2.add_ended(3, age=100)
        self._allow(["main", "other"])
        self._start()

    def now(self) -> tuple[float, int, Any]:
        return self.clock(), self.process, self.gateway

    def open(self, request: pb.WatchStoreImageTasksRequest) -> Any:
        return self.gateway.service.watch_store_image_tasks(request, Call(1e15))

    async def happen(self, what: str, number: int) -> None:  # noqa: C901, PLR0912, PLR0915  # a list of all that may happen
        ec2 = self.places[number % len(self.places)]
        subscriber = self.subscribers[number % len(self.subscribers)]
        running = [task for task in ec2.tasks if task.state == "InProgress"]
        task = running[number % len(running)] if running else None
        match what:
            case "start":
                ec2.add(bucket=f"b{number % 3}")
            case "start old":
                ec2.add(bucket="old", age=31 * DAY - 20 - number % 30, state="Completed", percentage=100)
            case "progress":
                for each in running:
                    ec2.progress(each, min(99, (each.percentage or 0) + 1 + number % 40))
            case "end" if task:
                ec2.end(task, failed="AccessDenied" if number % 3 == 0 else None)
            case "go" if ec2.tasks:
                ec2.remove(ec2.tasks[number % len(ec2.tasks)])
            case "hide" if ec2.tasks:
                # EC2 is eventually consistent: for a while it lacks a task.
                self._hidden.append((ec2, ec2.tasks[number % len(ec2.tasks)]))
                ec2.remove(self._hidden[-1][1])
            case "show":
                self._show()
            case "throttle":
                ec2.fail(aws_error("RequestLimitExceeded", status=503), times=1 + number % 3)
            case "fail":
                ec2.fail(aws_error("InternalError", status=500), times=None)
            case "hang":
                self._holds.append(ec2.hang())
            case "recover":
                self._recover()
            case "join":
                subscriber.join("", number)
            case "resume":
                away = [each for each in self.subscribers if each.stream is None and each.tokens]
                if away:
                    away[number % len(away)].join("own" if number % 4 else "epoch", number)
            case "resume badly":
                await subscriber.leave()
                subscriber.join(("future", "damaged", "other")[number // 5 % 3], number)
            case "stall":
                reading = [each for each in self.subscribers if each.stream is not None]
                if reading:
                    reading[number % len(reading)].stall()
            case "read on":
                for each in self.subscribers:
                    each.read_on()
            case "fall behind":
                subscriber.stall()
                for _ in range(2):
                    await self.happen("progress", number)
                    await self.happen("end", number)
                    await self.rest(BUSY + 1)
                subscriber.read_on()
            case "leave":
                reading = [each for each in self.subscribers if each.stream is not None]
                if reading:
                    await reading[number % len(reading)].leave()
            case "policy":
                choices = (
                    ["main", "other"],
                    ["main"],
                    ["other", "twin"],
                    ["main", "other", "twin"],
                    ["other"],
                )
                self._allow(choices[number % len(choices)])
                self.gateway.targets.replace(self.fake.accounts, {}, {})
            case "drain":
                await self._restart(drain=True)
            case "kill":
                await self._restart(drain=False)

    async def rest(self, seconds: float) -> None:
        """Let it run, and take note when all is quiet."""
        for wait in (0.0, seconds):
            await asyncio.sleep(wait)
            await settle()
        reading = tuple(
            (number, len(stream.events))
            for number, stream in enumerate(self.history.streams)
            if not stream.end and not stream.stalled(self.clock(), self.clock())
        )
        self.history.rests.append(Rest(self.clock(), self.process, self.gateway.followers.revision, reading))

    async def end(self) -> None:
        """Everything recovers and comes to rest; then all leave and no one reads any more."""
        self._show()
        self._recover()
        self._shifting = False
        self._allow(["main", "other"])
        self.gateway.targets.replace(self.fake.accounts, {}, {})
        for subscriber in self.subscribers:
            subscriber.read_on()
            if subscriber.number < 3:
                subscriber.join("", 0)
        # Long enough for what is gone to be confirmed by full reads.
        await self.rest(100)
        for ec2 in self.places:
            parent = pb.DescribeStoreImageTasksResponse()
            for task in ec2.listed():
                task.send(parent.store_image_task_results.add(), ec2.target)
            self.history.truth[ec2.target.account, ec2.target.region] = list(parent.store_image_task_results)
        for subscriber in self.subscribers[::2]:
            await subscriber.leave()
        await self._drain()
        await self.rest(LINGER + 1)
        await self.rest(30)
        await self.gateway.close()

    def _between(self, ec2: FakeEc2) -> Callable[[Ec2Call], None]:
        def between(call: Ec2Call) -> None:
            if call.token and self._shifting and len(ec2.calls) % 7 == 0 and len(ec2.tasks) < 40:
                # Tasks shift to the next page while one reads.
                ec2.add(bucket="shift")

        return between

    def _counting(self, ec2: FakeEc2) -> ReadPage:
        read_page = ec2.read_page

        async def counted(query: Query, token: str | None = None) -> Page:
            if token is None and not query.image_ids:
                self.history.calls.append(
                    (self.clock(), self.process, ec2.target.account_id, ec2.target.region)
                )
            return await read_page(query, token)

        return counted

    def _start(self) -> None:
        self.process += 1
        settings = Settings(accounts=[{"name": "main"}], **SETTINGS)  # type: ignore[arg-type]
        accounts: Any = self.fake.accounts
        self.gateway = assemble(settings, accounts, self.clock)

    async def _drain(self) -> None:
        # No moment of its own shares its time with whoever leaves before or after.
        await asyncio.sleep(1)
        self.history.drains[self.process] = self.clock()
        self.gateway.followers.drain()
        await asyncio.sleep(1)

    async def _restart(self, *, drain: bool) -> None:
        if drain:
            await self._drain()
        for subscriber in self.subscribers:
            await subscriber.leave()
        await self.gateway.close()
        self._start()

    def _allow(self, names: list[str]) -> None:
        self.fake.accounts.clear()
        self.fake.accounts.update({name: self.everybody[name] for name in names})
        self.history.policy.append((self.clock(), frozenset(names)))

    def _show(self) -> None:
        for ec2, task in self._hidden:
            ec2.tasks.append(task)
        self._hidden.clear()

    def _recover(self) -> None:
        for ec2 in self.places:
            ec2.recover()
            ec2._hold = None
        for hold in self._holds:
            hold.release()
        self._holds.clear()


# Some are more likely than others.
OFTEN: Final = ("progress", "end", "join", "resume", "leave")
WHAT: Final = (
    *OFTEN,
    "start",
    "progress",
    "end",
    "join",
    "resume",
    "start old",
    "go",
    "hide",
    "show",
    "throttle",
    "fail",
    "hang",
    "recover",
    "resume badly",
    "stall",
    "read on",
    "fall behind",
    "leave",
    "policy",
    "drain",
    "kill",
)
SECONDS: Final = (0.0, 1.0, 6.0, 6.0, 11.0, 40.0)
SCHEDULES: Final = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 99), st.sampled_from(SECONDS)),
    min_size=3,
    max_size=20,
)


def schedule_of(seed: int) -> Schedule:
    """One schedule, the same each time."""
    draw = random.Random(seed)
    return [
        (draw.choice(WHAT), draw.randrange(100), draw.choice(SECONDS)) for _ in range(draw.randint(3, 20))
    ]


def play(schedule: Schedule) -> History:
    """Run it, and tell what happened."""

    async def scenario(clock: VirtualClock) -> History:
        world = World(clock)
        with (
            recorded(world.history, world.now),
            mock.patch.object(line, "MAX_MESSAGE_BYTES", SMALL_MESSAGE),
        ):
            world.subscribers[0].join("", 0)
            for what, number, seconds in schedule:
                await world.happen(what, number)
                await world.rest(seconds)
            await world.end()
        return world.history

    return run(scenario, debug=False)
