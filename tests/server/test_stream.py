"""StreamStoreImageTasks, through a real channel."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest
from fake_ec2 import Call, FakeWorld, aws_error, image
from gateway_stage import NO_AGE, PATIENCE, Event, Gateway, Serve, eventually, near_its_deadline, reason_of
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb

FRANKFURT, VIRGINIA, OTHER = ("main", "eu-central-1"), ("main", "us-east-1"), ("other", "eu-central-1")
ONE: dict[str, Any] = {"accounts": ["main"], "regions": ["eu-central-1"]}
BROKEN = aws_error("InternalError", status=500)


def place(target: pb.Target) -> tuple[str, str]:
    return target.account, target.region


def rows(events: list[Event]) -> list[str]:
    """The AMI ids sent."""
    return [task.ami_id for event in events for task in event.page.store_image_task_results]


def ends(events: list[Event]) -> dict[tuple[str, str], tuple[str, str]]:
    """Per target its source and reason."""
    return {
        place(event.outcome.target): (pb.Source.Name(event.outcome.source)[7:], reason_of(event.outcome))
        for event in events
        if event.HasField("outcome")
    }


def check(events: list[Event]) -> list[Event]:
    """What holds of every stream that ends."""
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-1] == "summary"
    assert kinds.count("summary") == 1
    ended: set[tuple[str, str]] = set()
    ids: Counter[str] = Counter()
    for event in events[:-1]:
        if event.HasField("outcome"):
            target = place(event.outcome.target)
            assert target not in ended, "exactly one outcome for each target"
            ended.add(target)
        else:
            assert place(event.page.target) not in ended, "no page follows its target's outcome"
            assert 1 <= len(event.page.store_image_task_results) <= 200
            for task in event.page.store_image_task_results:
                assert (task.account, task.region) == place(event.page.target)
                ids[task.task_id] += 1
    assert not [each for each, count in ids.items() if count > 1], "no task is sent twice"
    outcomes = [event.outcome for event in events if event.HasField("outcome")]
    summary = events[-1].summary
    assert summary.task_count == ids.total()
    assert summary.target_count == len(outcomes)
    stale = [each for each in outcomes if each.source == pb.SOURCE_STALE]
    failed = [each for each in outcomes if each.HasField("status") and each.source != pb.SOURCE_STALE]
    assert (summary.stale_target_count, summary.failed_target_count) == (len(stale), len(failed))
    return events


async def read(stream: Any, events: list[Event], count: int) -> None:
    """Read so many messages more."""
    for _ in range(count):
        events.append(await stream.read())  # noqa: PERF401  # what came counts even if one fails


async def rest(stream: Any, events: list[Event]) -> list[Event]:
    """Read to the end."""
    while (event := await stream.read()) is not grpc.aio.EOF:
        events.append(event)  # what came is seen even if an error follows
    assert await stream.code() is grpc.StatusCode.OK
    return check(events)


async def test_all_tasks_of_all_targets_come_with_an_outcome_each_and_a_summary(gateway: Gateway) -> None:
    for number, ec2 in enumerate(gateway.world.all()):
        ec2.add(image(number))
        ec2.add_ended(number)
    events = check(await gateway.stream())
    assert len(rows(events)) == 6
    assert ends(events) == dict.fromkeys((FRANKFURT, VIRGINIA, OTHER), ("LIVE", ""))
    assert events[-1].summary == Event.Summary(task_count=6, target_count=3)


async def test_a_stream_without_tasks_has_outcomes_and_a_summary(gateway: Gateway) -> None:
    events = check(await gateway.stream())
    assert [event.WhichOneof("event") for event in events] == ["outcome"] * 3 + ["summary"]


async def test_within_a_target_the_newest_comes_first(gateway: Gateway) -> None:
    for number in range(5):
        gateway.world.ec2().add(image(number), age=number)
    assert rows(await gateway.stream(**ONE)) == [image(n) for n in range(5)]


async def test_the_selector_chooses_targets_and_tasks(gateway: Gateway) -> None:
    for ec2 in gateway.world.all():
        ec2.add(image(1), bucket="archive")
        ec2.add(image(1), bucket="vault", age=1)
        ec2.add(image(2), bucket="vault", age=2)
    events = check(
        await gateway.stream(
            accounts=["main"],
            image_ids=[image(1), image(9)],
            filters=[pb.Filter(name="bucket", values=["v*", "archive"])],
        )
    )
    assert Counter(rows(events)) == {image(1): 4}
    assert set(ends(events)) == {FRANKFURT, VIRGINIA}


async def test_a_hanging_target_delays_no_other(gateway: Gateway) -> None:
    for ec2 in gateway.world.all():
        ec2.add(image(1))
    hold = gateway.world.ec2(*VIRGINIA).hang()
    stream = gateway.open_stream()
    events: list[Event] = []
    await read(stream, events, 4)
    assert set(ends(events)) == {FRANKFURT, OTHER}
    assert len(rows(events)) == 2
    hold.release()
    assert set(ends(await rest(stream, events))) == {FRANKFURT, VIRGINIA, OTHER}


async def test_each_page_is_sent_when_ec2_has_answered_it(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, page_size=2)
    ec2 = world.ec2()
    ec2.add_ended(5)
    gateway = await serve(world)
    stream = gateway.open_stream()
    events: list[Event] = []
    holds = []

    def hang_at_the_next(_: Call) -> None:
        holds.append(ec2.hang())

    ec2.between = hang_at_the_next
    for page in (1, 2):
        await read(stream, events, 1)
        assert len(rows(events)) == 2 * page
        holds[-1].release()
    await rest(stream, events)
    assert len(rows(events)) == 5


async def test_a_cached_target_is_sent_before_a_live_one_has_answered(gateway: Gateway) -> None:
    gateway.world.ec2(*OTHER).add(image(1))
    await gateway.stream(accounts=["other"])
    hold = gateway.world.ec2(*FRANKFURT).hang()
    gateway.world.ec2(*VIRGINIA).hang()
    stream = gateway.open_stream()
    events: list[Event] = []
    await hold.reached()
    await read(stream, events, 2)
    assert ends(events) == {OTHER: ("CACHED", "")}
    stream.cancel()


async def test_a_large_state_comes_in_pages_of_200(gateway: Gateway) -> None:
    gateway.world.ec2().add_ended(450)
    await gateway.stream(**ONE)
    events = check(await gateway.stream(**ONE))
    assert ends(events) == {FRANKFURT: ("CACHED", "")}
    assert [len(event.page.store_image_task_results) for event in events[:3]] == [200, 200, 50]


async def test_no_task_comes_twice_though_the_list_moves_between_pages(
    serve: Serve, clock: VirtualClock
) -> None:
    world = FakeWorld(clock, page_size=3)
    ec2 = world.ec2()
    ec2.add_ended(10)

    def start_one(call: Call) -> None:
        if call.token:
            ec2.add()

    ec2.between = start_one
    gateway = await serve(world)
    events = check(await gateway.stream())
    # All that was there when the read began.
    assert len(rows(events)) >= 10


async def test_a_task_that_ends_between_pages_counts_once(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, page_size=2)
    ec2 = world.ec2()
    tasks = [ec2.add(image(number), age=number) for number in range(6)]

    def end_and_start(call: Call) -> None:
        if call.token and tasks[1].state == "InProgress":
            ec2.end(tasks[1])
            ec2.add()

    ec2.between = end_and_start
    gateway = await serve(world)
    events = check(await gateway.stream())
    assert Counter(rows(events))[image(1)] == 1


class TestFailing:
    """Streams end with OK, whatever becomes of their targets."""

    async def test_a_stream_ends_well_even_if_every_target_failed(self, gateway: Gateway) -> None:
        for ec2 in gateway.world.all():
            ec2.fail(BROKEN, times=None)
        events = await rest(gateway.open_stream(), [])
        assert set(ends(events).values()) == {("NONE", "AWS_INTERNAL_ERROR")}
        assert events[-1].summary == Event.Summary(target_count=3, failed_target_count=3)

    async def test_a_stream_of_one_target_ends_well_too(self, gateway: Gateway) -> None:
        gateway.world.ec2().fail(BROKEN)
        events = await rest(gateway.open_stream(**ONE), [])
        assert ends(events) == {FRANKFURT: ("NONE", "AWS_INTERNAL_ERROR")}

    async def test_the_last_state_of_a_failed_target_is_sent_as_stale(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        gateway.world.ec2().add(image(1))
        await gateway.stream()
        gateway.world.ec2().fail(BROKEN, times=None)
        clock.advance(60)
        events = check(await gateway.stream())
        assert ends(events)[FRANKFURT] == ("STALE", "AWS_INTERNAL_ERROR")
        assert rows(events) == [image(1)]
        assert events[-1].summary.stale_target_count == 1

    async def test_who_forbids_stale_rows_gets_none(self, gateway: Gateway, clock: VirtualClock) -> None:
        gateway.world.ec2().add(image(1))
        await gateway.stream()
        gateway.world.ec2().fail(BROKEN, times=None)
        clock.advance(60)
        events = check(await gateway.stream(forbid_stale=True))
        assert ends(events)[FRANKFURT] == ("NONE", "AWS_INTERNAL_ERROR")
        assert rows(events) == []

    async def test_after_live_pages_a_failure_sends_no_stale_rows_and_says_so(
        self, serve: Serve, clock: VirtualClock
    ) -> None:
        world = FakeWorld(clock, page_size=2)
        ec2 = world.ec2()
        tasks = [ec2.add(image(number), age=number) for number in range(6)]
        gateway = await serve(world)
        await gateway.stream()
        for task in tasks:
            ec2.progress(task, 50)

        def break_later_pages(call: Call) -> None:
            if call.token:
                ec2.fail(BROKEN)

        ec2.between = break_later_pages
        events = check(await gateway.stream(max_age=NO_AGE))
        ((source, reason),) = ends(events).values()
        assert (source, reason) == ("LIVE", "AWS_INTERNAL_ERROR")
        assert rows(events) == [image(0), image(1)]
        assert {
            task.progress_percentage for event in events for task in event.page.store_image_task_results
        } == {50}
        assert events[-1].summary.failed_target_count == 1

    async def test_before_a_deadline_unfinished_targets_get_their_outcome(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        hold = gateway.world.ec2(*VIRGINIA).hang()
        gateway.world.ec2(*FRANKFURT).add(image(1))
        events = await near_its_deadline(rest(gateway.open_stream(), []), hold, clock)
        assert ends(events) == {
            FRANKFURT: ("LIVE", ""),
            VIRGINIA: ("NONE", "DEADLINE"),
            OTHER: ("LIVE", ""),
        }
        assert rows(events) == [image(1)]

    async def test_before_a_deadline_the_last_state_is_sent(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        gateway.world.ec2(*VIRGINIA).add(image(1))
        await gateway.stream()
        hold = gateway.world.ec2(*VIRGINIA).hang()
        stream = gateway.open_stream(max_age=NO_AGE)
        events = await near_its_deadline(rest(stream, []), hold, clock)
        assert ends(events)[VIRGINIA] == ("STALE", "DEADLINE")
        assert rows(events) == [image(1)]

    async def test_an_account_that_cannot_be_used_is_an_outcome_without_a_region(
        self, gateway: Gateway
    ) -> None:
        gateway.world.accounts["other"].discovery_fault = aws_error("InvalidClientTokenId").at("other")
        events = check(await gateway.stream())
        assert ends(events)["other", ""] == ("NONE", "AWS_CREDENTIALS_REJECTED")
        assert ends(events)[FRANKFURT] == ("LIVE", "")

    async def test_a_read_that_fails_inside_is_internal_and_does_not_say_why(
        self, gateway: Gateway, log: list[Any]
    ) -> None:
        def stumble(_: Call) -> None:
            raise RuntimeError("the password is swordfish")

        gateway.world.ec2().between = stumble
        events = await rest(gateway.open_stream(**ONE), [])
        assert ends(events) == {FRANKFURT: ("NONE", "INTERNAL")}
        assert b"swordfish" not in b"".join(event.SerializeToString() for event in events)
        assert any(isinstance(entry.get("exc_info"), RuntimeError) for entry in log)


async def test_streams_share_a_read_and_each_gets_every_page(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, page_size=2)
    ec2 = world.ec2()
    ec2.add_ended(7)
    gateway = await serve(world)
    hold = ec2.hang()
    streams = [asyncio.create_task(gateway.stream()) for _ in range(5)]
    await eventually(lambda: gateway.inside == 5)
    hold.release()
    for stream in streams:
        assert len(rows(check(await stream))) == 7
    assert ec2.lists == 1


async def test_one_who_joins_late_gets_the_earlier_pages_too(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, page_size=2)
    ec2 = world.ec2()
    ec2.add_ended(4)
    gateway = await serve(world)
    holds: list[Any] = []
    ec2.between = lambda call: holds.append(ec2.hang()) if not call.token else None
    first = gateway.open_stream()
    seen: list[Event] = []
    await read(first, seen, 1)
    late = asyncio.create_task(gateway.stream())
    await eventually(lambda: gateway.inside == 2)
    holds[0].release()
    assert len(rows(await rest(first, seen))) == 4
    assert len(rows(check(await late))) == 4
    assert ec2.lists == 1


@pytest.mark.parametrize("readers", [0, 1])
async def test_one_who_does_not_read_delays_nobody(serve: Serve, clock: VirtualClock, readers: int) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1", "us-east-1")})
    for ec2 in world.all():
        for number in range(400):
            ec2.add(image(number), age=number, state="Failed", reason="r" * 4000)
    gateway = await serve(world, channel_options=[("grpc.http2.bdp_probe", 0)])
    stuck = gateway.open_stream()
    for _ in range(readers):
        await stuck.read()
    async with asyncio.timeout(PATIENCE):
        assert len(rows(check(await gateway.stream()))) == 800
    stuck.cancel()
