"""A random world: what may happen in it, and when all is quiet."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from clients import PERMISSIONS, R1, R2, WHO_ASKS_WHAT, Subscriber, describe, wait
from facts import Matches, Name, fact
from fake_ec2 import Call as Ec2Call
from fake_ec2 import FakeAccount, FakeEc2, FakeWorld, Task, aws_error
from history import Call, History, Rest
from rules import BUSY, rules
from virtual import VirtualClock, settle

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import assemble
from imagetasks_server.config import Settings
from imagetasks_server.permission import EVERYTHING
from imagetasks_server.upstream import Page, Query, ReadPage

if TYPE_CHECKING:
    from told import Sight

    from imagetasks_server.access import Access


DAY: Final = 86400.0
# The accounts that there are, and the Regions that those have.
ACCOUNTS: Final = (["main", "other"], ["main"], ["other", "twin"], ["main", "other", "twin"], ["other"])
REGIONS: Final = {"main": ((R1, R2), (R1,)), "other": ((R1,), (R1, R2))}
# Seconds that an answer may be old where no read is demanded.
OLD: Final = 60
SLOW: Final = (0.0, 0.3, 1.5, 4.0)


class World:
    """Three accounts, two of them names of one, and whoever asks."""

    def __init__(self, clock: VirtualClock, settings: Settings) -> None:
        self.clock = clock
        self.settings = settings
        self.process = 0
        self.history = History(rules(settings))
        self.fake = FakeWorld(clock, {"main": (R1, R2), "other": (R1, R2)}, page_size=3)
        self.everybody = dict(self.fake.accounts)
        main = self.everybody["main"]
        self.everybody["twin"] = FakeAccount("twin", main.account_id, (R1,), main.by_region)
        self.history.ids = {name: account.account_id for name, account in self.everybody.items()}
        self.places = self.fake.all()
        self.subscribers = [Subscriber(self, number) for number in range(len(WHO_ASKS_WHAT))]
        # What those may see who wait.
        self.waiting: dict[Access, Sight] = {}
        # How much has, so far.
        self.happened = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._hidden: list[tuple[FakeEc2, Task]] = []
        self._hidden_at: dict[Task, float] = {}
        self._holds: list[Any] = []
        self._slow: dict[FakeEc2, float] = {}
        self._shifting = True
        for ec2 in self.places:
            ec2.between = self._between(ec2)
            ec2.read_page = self._asked(ec2)  # type: ignore[method-assign,assignment]
            ec2.add(bucket="b0")
            ec2.add_ended(3, age=100)
        self._furnish()
        self._start()

    def now(self) -> tuple[float, int, Any]:
        return self.clock(), self.process, self.gateway

    def unfinished(self, matches: Matches) -> set[tuple[Name, Task]]:
        """What EC2 lists as unfinished, where there is something to be seen."""
        found = set()
        for name, region in self.history.there[-1][1]:
            ec2 = self.everybody[name].by_region[region]
            for task in ec2.listed():
                message = pb.StoreImageTaskResult()
                task.send(message, ec2.target)
                if task.state == "InProgress" and matches(message):
                    found.add(((name, region), task))
        return found

    def was_hidden(self, task: Task, since: float) -> bool:
        """Whether EC2 lacked it for a while."""
        return self._hidden_at.get(task, 0.0) >= since

    async def happen(self, what: str, number: int) -> None:  # noqa: C901, PLR0912, PLR0915  # a list of all that may happen
        self.happened += 1
        ec2 = self.places[number % len(self.places)]
        subscriber = self.subscribers[number % len(self.subscribers)]
        reading = [each for each in self.subscribers if each.stream is not None]
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
            case "slow":
                self._slow[ec2] = SLOW[number // len(self.places) % len(SLOW)]
            case "recover":
                self._recover()
            case "join":
                subscriber.join("", number)
            case "join briefly":
                subscriber.join("own", number, expires=self.clock() + 1 + number % 30)
            case "resume":
                away = [each for each in self.subscribers if each.stream is None and each.tokens]
                if away:
                    away[number % len(away)].join("own" if number % 4 else "epoch", number)
            case "resume badly":
                await subscriber.leave()
                subscriber.join(("future", "damaged", "other")[number // 5 % 3], number)
            case "stall" if reading:
                reading[number % len(reading)].stall()
            case "read on":
                for stalled in self.subscribers:
                    stalled.read_on()
            case "fall behind" if reading:
                behind = reading[number % len(reading)]
                behind.stall()
                # A group for each.
                for event in ("start", "progress", "end"):
                    await self.happen(event, number)
                    await self.rest(BUSY + 1)
                behind.read_on()
            case "leave" if reading:
                await reading[number % len(reading)].leave()
            case "permit":
                self._permit((reading or [subscriber])[number % max(1, len(reading))], number // 7)
            case "lose sight" if reading:
                # Of what is on its way to somebody who does not read.
                loser = reading[number % len(reading)]
                loser.stall()
                await self.happen("progress", number)
                await self.rest(BUSY + 1)
                self._permit(loser, number)
                await self.happen("end", number)
                await self.rest(BUSY + 1)
                loser.read_on()
            case "revoke" if reading:
                reading[number % len(reading)].revoke()
            case "describe":
                names = sorted(self.history.there[-1][1])
                self._ask(describe(self, names[number % len(names)], 0))
            case "describe twice":
                # What watches are told in between is to be told the second time.
                place = (ec2.target.account, ec2.target.region)
                self._ask(describe(self, place, OLD))
                await self.rest(0.0)
                for event in ("progress", "end"):
                    await self.happen(event, number)
                await self.rest(BUSY + 1)
                self._ask(describe(self, place, OLD))
            case "wait":
                self._ask(wait(self, number, PERMISSIONS[number // 12 % len(PERMISSIONS)]))
            case "accounts":
                self._furnish(ACCOUNTS[number % len(ACCOUNTS)])
            case "regions":
                name = sorted(REGIONS)[number % len(REGIONS)]
                self.everybody[name].regions = REGIONS[name][number // 2 % 2]
                self._furnish(list(self.fake.accounts))
            case "cannot find out":
                name = sorted(REGIONS)[number % len(REGIONS)]
                self.everybody[name].discovery_fault = aws_error("InternalError", status=500)
                self.history.doubts.setdefault(name, []).append([self.clock(), 1e18])
            case "drain":
                await self._restart(drain=True)
            case "kill":
                await self._restart(drain=False)

    async def rest(self, seconds: float) -> None:
        """Let it run, and take note when all is quiet."""
        for pause in (0.0, seconds):
            await asyncio.sleep(pause)
            await settle()
        self.note_rest()

    def note_rest(self) -> int:
        """That all is quiet; how many times it had been before."""
        reading = tuple(
            (number, len(stream.events))
            for number, stream in enumerate(self.history.streams)
            if not stream.end and not stream.stalled(self.clock(), self.clock())
        )
        rests = self.history.rests
        rests.append(Rest(self.clock(), self.process, self.gateway.followers.revision, reading))
        return len(rests) - 1

    async def end(self) -> None:
        """Everything recovers and comes to rest; then all leave and no one reads any more."""
        self._show()
        self._recover()
        self._shifting = False
        for account, regions in REGIONS.items():
            self.everybody[account].regions = regions[0]
        self._furnish()
        for subscriber in self.subscribers:
            subscriber.read_on()
        # Long enough for what is gone to be confirmed by full reads.
        for _ in range(8):
            for subscriber in self.subscribers[:3]:
                subscriber.permit(EVERYTHING)
                subscriber.join("", 0)
            await self.rest(20)
            self._write_truth()
            if all(self._is_true(each) for each in self.subscribers[:3]):
                break
        for subscriber in self.subscribers[::2]:
            await subscriber.leave()
        await self._drain()
        await self._nobody_asks()
        await self.rest(self.settings.poll_linger + 1)
        await self.rest(30)
        await self.gateway.close()

    def _write_truth(self) -> None:
        for name, region in self.history.there[-1][1]:
            ec2 = self.everybody[name].by_region[region]
            parent = pb.DescribeStoreImageTasksResponse()
            for task in ec2.listed():
                task.send(parent.store_image_task_results.add(), ec2.target)
            self.history.truth[name, region] = list(parent.store_image_task_results)

    def _is_true(self, subscriber: Subscriber) -> bool:
        return subscriber.stream is not None and all(
            {key: (now.word, now.percentage) for key, now in subscriber.held.tasks.get(name, {}).items()}
            == {each.task_id: fact(each)[:2] for each in tasks if subscriber.matches(each)}
            for name, tasks in self.history.truth.items()
        )

    def _ask(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _nobody_asks(self) -> None:
        for task in self._asking:
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)

    def _permit(self, subscriber: Subscriber, number: int) -> None:
        permission = PERMISSIONS[number % len(PERMISSIONS)]
        subscriber.permit(permission)
        for access, sight in self.waiting.items():
            sight.decided.append((self.clock(), permission))
            access.decide(permission)

    def _between(self, ec2: FakeEc2) -> Callable[[Ec2Call], None]:
        def between(call: Ec2Call) -> None:
            if call.token and self._shifting and len(ec2.calls) % 7 == 0 and len(ec2.tasks) < 40:
                # Tasks shift to the next page while one reads.
                ec2.add(bucket="shift")

        return between

    def _asked(self, ec2: FakeEc2) -> ReadPage:
        read_page = ec2.read_page

        async def asked(query: Query, token: str | None = None) -> Page:
            target = ec2.target
            lists = token is None and not query.image_ids
            self.history.calls.append(
                Call(self.clock(), self.process, target.account_id, target.region, lists)
            )
            # What comes is half as old as the call.
            seconds = self._slow.get(ec2, 0.0) / 2
            await asyncio.sleep(seconds)
            page = await read_page(query, token)
            await asyncio.sleep(seconds)
            return page

        return asked

    def _start(self) -> None:
        self.process += 1
        self.history.begun[self.process] = self.clock()
        accounts: Any = self.fake.accounts
        self.gateway = assemble(self.settings, accounts, self.clock)

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
        await self._nobody_asks()
        self.history.killed[self.process] = self.clock()
        await self.gateway.close()
        self._start()

    def _furnish(self, names: Iterable[str] = ("main", "other")) -> None:
        """From now on these accounts are there, with the Regions that they have."""
        names = list(names)
        self.fake.accounts.clear()
        self.fake.accounts.update({name: self.everybody[name] for name in names})
        there = frozenset((name, region) for name in names for region in self.everybody[name].regions)
        self.history.there.append((self.clock(), there))
        if self.process:
            self.gateway.targets.replace(self.fake.accounts, {}, {})

    def _show(self) -> None:
        for ec2, task in self._hidden:
            ec2.tasks.append(task)
            self._hidden_at[task] = self.clock()
        self._hidden.clear()

    def _recover(self) -> None:
        for ec2 in self.places:
            ec2.recover()
            ec2._hold = None
        self._slow.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
        for name, account in self.everybody.items():
            account.discovery_fault = None
            for doubt in self.history.doubts.get(name, []):
                doubt[1] = min(doubt[1], self.clock())
