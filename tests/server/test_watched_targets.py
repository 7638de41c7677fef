"""Accounts, Regions and views that come, go or cannot be found out while they are watched."""

import asyncio

from fake_ec2 import FakeAccount, FakeEc2, FakeWorld, Hold, aws_error
from watch_stage import Event, Stage, Watcher, kinds, staged

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.targets import Target

HEARTBEAT = 25.0


def come(stage: Stage, name: str, account_id: str = "999999999999", *, hold: Hold | None = None) -> FakeEc2:
    """One more account, with one Region."""
    ec2 = FakeEc2(stage.clock, Target(name, "eu-central-1", account_id, "aws"))
    account = FakeAccount(name, account_id, ("eu-central-1",), {"eu-central-1": ec2}, hold=hold)
    replace(stage.world, stage, stage.world.accounts | {name: account})
    return ec2


def go(stage: Stage, name: str) -> None:
    replace(stage.world, stage, {key: each for key, each in stage.world.accounts.items() if key != name})


def replace(world: FakeWorld, stage: Stage, accounts: dict[str, FakeAccount]) -> None:
    world.accounts.clear()
    world.accounts.update(accounts)
    stage.gateway.targets.replace(accounts, {}, {})


def statuses(events: list[Event], account: str) -> list[bool]:
    """Whether each status of a whole account is an error."""
    return [
        event.target_status.HasField("status")
        for event in events
        if event.HasField("target_status") and event.target_status.target.account == account
    ]


def listed(events: list[Event]) -> list[str]:
    """The accounts of the targets that are followed, as told last."""
    changed = [event.targets_changed for event in events if event.HasField("targets_changed")]
    return [target.account for target in changed[-1].targets]


async def busy(stage: Stage, watcher: Watcher, seconds: float) -> list[Event]:
    """Watch while there is something to tell more often than heartbeats would come."""
    (task,) = stage.world.ec2().tasks
    seen = []
    for percentage in range(1, round(seconds) + 1):
        stage.world.ec2().progress(task, min(percentage, 99))
        seen += await watcher.during(1)
    return seen


def test_an_account_that_goes_is_taken_back_however_much_there_is_to_tell() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        come(stage, "guest").add()
        watcher = await stage.watch()
        await watcher.during(1)
        assert {task.account for task in watcher.held.values()} == {"guest", "main"}
        go(stage, "guest")
        events = await busy(stage, watcher, HEARTBEAT + 1)
        removed = [c for e in events for c in e.changes.changes if c.type == pb.TaskChange.TYPE_REMOVED]
        assert [c.removal_reason for c in removed] == [pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED]
        # Behind what was taken back.
        assert kinds(events).index("targets_changed") > events.index(
            next(event for event in events if removed[0] in event.changes.changes)
        )
        assert listed(events) == ["main", "main"]
        assert {task.account for task in watcher.held.values()} == {"main"}

    staged(scenario, poll_interval=2)


def test_an_account_that_comes_is_followed_however_much_there_is_to_tell() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        come(stage, "guest").add()
        await busy(stage, watcher, 2 * HEARTBEAT + 1)
        assert {task.account for task in watcher.held.values()} == {"guest", "main"}

    staged(scenario, poll_interval=2)


def test_an_account_that_cannot_be_found_out_delays_no_news_of_others() -> None:
    async def scenario(stage: Stage) -> None:
        task = stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        come(stage, "mute", hold=Hold())
        for percentage in range(1, 60):
            stage.world.ec2().progress(task, percentage)
            await watcher.during(2.5)
            assert watcher.percentages()[-1] >= percentage - 1
        assert statuses(watcher.seen, "mute") == [True]

    staged(scenario, poll_interval=2)


def test_that_an_account_was_found_out_after_all_is_told() -> None:
    async def scenario(stage: Stage) -> None:
        hold = Hold()
        come(stage, "late", hold=hold).add()
        watcher = await stage.watch()
        await watcher.during(2 * HEARTBEAT + 1)
        hold.release()
        events = await watcher.during(2 * HEARTBEAT)
        assert statuses(watcher.seen, "late") == [True, False]
        # What is followed now is said before that all is well again: a client may hold tasks of it.
        assert kinds(events)[:3] == ["targets_changed", "target_status", "changes"]
        assert listed(events) == ["late", "main", "main"]
        assert len(watcher.held) == 1

    staged(scenario)


def test_a_view_that_was_forgotten_meanwhile_is_not_continued() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add_ended(3)
        first = await stage.watch()
        await first.during(20)
        await first.close()
        await asyncio.sleep(1000)
        for _ in range(2):
            # The registry looks for what to forget when it is used.
            stage.gateway.registry.of(Target("other", "eu-central-1", "888888888888", "aws"))
            await asyncio.sleep(100)
        resumed = await stage.watch(resume=first.token)
        resumed.held = dict(first.held)
        events = await resumed.during(1)
        assert "reset" in kinds(events)
        assert resumed.held.keys() == first.held.keys()

    staged(scenario, keep_unused_for=300)


def test_a_view_that_was_followed_until_just_now_is_not_forgotten() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add_ended(3)
        first = await stage.watch()
        await first.during(2000)
        await first.close()
        await asyncio.sleep(100)
        resumed = await stage.watch(resume=first.token)
        resumed.held = dict(first.held)
        events = await resumed.during(1)
        assert events[0].started.resumed
        assert kinds(events) == ["started"]

    staged(scenario, keep_unused_for=300)


def test_a_wait_goes_on_when_an_account_was_found_out_after_all() -> None:
    async def scenario(stage: Stage) -> None:
        hold = Hold()
        late = come(stage, "late", hold=hold)
        task = late.add()
        waiting = asyncio.create_task(stage.wait())
        await asyncio.sleep(60)
        hold.release()
        await asyncio.sleep(20)
        assert not waiting.done()
        late.end(task)
        answer = await waiting
        assert answer.done
        assert len(answer.store_image_task_results) == 1

    staged(scenario)


def test_a_target_that_cannot_be_read_for_one_watch_is_told_to_the_next() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().fail(aws_error("InternalError", status=500), times=None)
        await (await stage.watch()).during(60)
        assert "target_status" in kinds(await (await stage.watch()).during(1))

    staged(scenario)


def test_a_read_that_changes_nothing_wakes_nobody() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        (subscription,) = stage.gateway.followers._open
        subscription._is_awake = False
        calls = len(stage.world.calls)
        await asyncio.sleep(6)
        assert len(stage.world.calls) > calls
        assert not subscription._is_awake

    staged(scenario)
