"""What it costs EC2 to keep callers fresh, and how late they hear, beside boto3 loops and the stock waiter.

All in virtual time, for in real time it takes hours; EC2 is the tests' fake behind its real limit of calls.
"""

import asyncio
import contextlib
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/server"))

import structlog
from fake_ec2 import FakeEc2, FakeWorld, aws_error
from frame import Benchmark, Goal, Result, Row, shown
from loops import SECONDS, Asked, polling, waiting
from virtual import VirtualClock, run

from canned.throttle import Bucket
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import assemble
from imagetasks_server.config import Settings
from imagetasks_server.service import Call

ESTATES, CALLERS = (10, 1000, 10_000), (1, 100, 10_000)
# What they follow: a task that has ended leaves it.
IN_PROGRESS = pb.TaskSelector(filters=[pb.Filter(name="task-state", values=["InProgress"])])
# A task starts as often, and ends as long after.
STARTS_EVERY, TAKES = 30.0, (20.0, 70.0)
SETTLING = 240.0
# Ten thousand heartbeats more often would be all that the simulation does.
HEARTBEAT = 60.0


@dataclass
class Told:
    """What came of a number of callers.

    Attributes:
        asked: What EC2 was asked.
        late: Seconds from the end of a task to each who heard of it.
    """

    asked: Asked = field(default_factory=Asked)
    late: list[float] = field(default_factory=list)


def measure(quick: bool) -> Result:
    """Every estate with every number of callers; then what must be flat."""
    rows: list[Row] = []
    tokens: dict[tuple[int, int], float] = {}
    throttled = 0
    sizes = [(10, 1), (1000, 100)] if quick else [(tasks, count) for tasks in ESTATES for count in CALLERS]
    for tasks, count in sizes:
        ours = told(tasks, count)
        minutes = SECONDS / 60
        tokens[tasks, count] = ours.asked.granted / minutes
        throttled += ours.asked.throttled
        loops, waiters = polling(tasks, count), waiting(count)
        of = f"{tasks:,} tasks, {count:,} caller{'s' * (count > 1)}"
        beside = "a boto3 loop each; the stock waiter each"
        peers = f"loops {loops.cost}; waiters {waiters.cost}"
        rows += [
            Row(
                f"{of}: EC2 tokens a minute",
                beside,
                Goal(unit=""),
                [tokens[tasks, count]],
                f"a fresh answer: {shown(ours.asked.granted / ours.asked.answers, 'tokens')}; {peers}",
            ),
            Row(
                f"{of}: from completion to a subscriber",
                beside,
                Goal(unit="s"),
                ours.late,
                f"loops {loops.lateness}; waiters {waiters.lateness}",
            ),
        ]
    first, last = sizes[0], sizes[-1]
    flat = Goal(most=1.1)
    rows.append(Row("throttles, all of these", "none", Goal(most=0, unit=""), [throttled]))
    if not quick:
        for name, less, more in (
            ("callers", first, (first[0], last[1])),
            ("history", first, (last[0], first[1])),
        ):
            rows.append(
                Row(
                    f"tokens a minute, flat in {name}",
                    f"{less[0]:,} tasks, {less[1]:,} caller; against {more[0]:,} and {more[1]:,}",
                    flat,
                    [tokens[more] / tokens[less]],
                )
            )
    return Result(rows)


def told(tasks: int, subscribers: int) -> Told:
    """A gateway with default settings, and so many who watch what is in progress."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    found = Told()

    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock)
        ec2 = world.ec2()
        ec2.add_ended(tasks)
        counting = _Limited(ec2, clock)
        fields: dict[str, Any] = {"accounts": [{"name": "main"}], "heartbeat_interval": HEARTBEAT}
        accounts: Any = world.accounts
        gateway = assemble(Settings(**fields), accounts, clock)
        ended: dict[str, float] = {}

        async def subscribe() -> None:
            events = gateway.service.watch_store_image_tasks(
                pb.WatchStoreImageTasksRequest(selector=IN_PROGRESS), Call(clock() + 86400, "benchmark")
            )
            async with contextlib.aclosing(events) as stream:
                async for event in stream:
                    for change in event.changes.changes:
                        at = ended.get(change.task.ami_id)
                        if at is not None and change.type == pb.TaskChange.TYPE_REMOVED:
                            found.late.append(clock() - at)

        going_on = asyncio.create_task(_tasks(ec2, clock, ended))
        watching = [asyncio.create_task(subscribe())]
        # A long list is read within what the budget allows at first.
        await asyncio.sleep(SETTLING)
        watching += [asyncio.create_task(subscribe()) for _ in range(subscribers - 1)]
        await asyncio.sleep(HEARTBEAT)
        counting.begin()
        found.late.clear()
        await asyncio.sleep(SECONDS)
        found.asked = counting.asked
        found.asked.answers *= subscribers
        for each in (going_on, *watching):
            each.cancel()
        await asyncio.wait([going_on, *watching])
        await gateway.close()

    run(scenario, debug=False)
    return found


class _Limited:
    """EC2's own limit on an EC2, and a count of what it is asked."""

    def __init__(self, ec2: FakeEc2, clock: VirtualClock) -> None:
        self._ec2 = ec2
        self._clock = clock
        self._bucket = Bucket(50, 0.5, clock())
        self.asked = Asked()
        ec2.between = self._meet

    def begin(self) -> None:
        """Count from here."""
        self.asked = Asked()

    def _meet(self, call: Any) -> None:
        if not self._bucket.take(self._clock()):
            self.asked.throttled += 1
            raise aws_error("RequestLimitExceeded", status=503).at("main", self._ec2.target.region)
        self.asked.granted += 1
        # With its first page a read makes what everybody knows new.
        self.asked.answers += call.token is None


async def _tasks(ec2: FakeEc2, clock: VirtualClock, ended: dict[str, float]) -> None:
    """Tasks that start and end, for ever."""
    chance = random.Random(1)
    running: dict[float, list[Any]] = defaultdict(list)
    while True:
        task = ec2.add(f"ami-{chance.getrandbits(64):017x}")
        running[clock() + chance.uniform(*TAKES)].append(task)
        next_start = clock() + STARTS_EVERY
        for at in sorted(each for each in running if each < next_start):
            await asyncio.sleep(at - clock())
            for each in running.pop(at):
                ec2.end(each)
                ended[each.ami_id] = clock()
        await asyncio.sleep(next_start - clock())


BENCHMARK = Benchmark(
    "freshness",
    "What EC2 is asked, and how late a subscriber hears",
    f"In virtual time, {SECONDS / 60:.0f} minutes of it: the gateway's parts below gRPC with default "
    f"settings (but for heartbeats, every {HEARTBEAT:.0f} s), on a fake EC2 behind its limit of 50 calls "
    "and one more every two seconds. A task starts every 30 s; subscribers follow what is in progress. "
    "The loops list everything every 5 s, the waiters ask for their AMI every 5 s; both try a throttled "
    "call again as boto3 does by default, four times. They are simulated with that limit alone, 10,000 "
    "loops for one minute.",
    measure,
)
