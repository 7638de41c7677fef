"""Watches on virtual time: snapshots, changes, resuming, heartbeats, who is stale, and the end."""

import asyncio
from collections.abc import Callable

import pytest
from fake_ec2 import Call as Ec2Call
from fake_ec2 import aws_error, image
from virtual import VirtualClock, run, settle
from watch_stage import REGIONS, Event, Stage, drawn_from, kinds, staged

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import Error
from imagetasks_server.follow import ENOUGH
from imagetasks_server.service import Call


def test_a_watch_begins_with_a_snapshot_of_each_target_then_tells_changes() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        tasks = [ec2.add(percentage=number) for number in range(3)]
        watcher = await stage.watch()
        started = await watcher.next()
        assert not started.started.resumed
        assert [target.region for target in started.started.targets] == list(REGIONS)
        covered = {t.region for e in await watcher.during(1) for t in e.snapshot_complete.targets}
        assert covered == set(REGIONS)
        assert watcher.percentages() == [0, 1, 2]
        ec2.progress(tasks[0], 50)
        ec2.end(tasks[1])
        change = await watcher.next("changes")
        assert not change.changes.continued
        assert change.resume_token
        assert [each.type for each in change.changes.changes] == [pb.TaskChange.TYPE_MODIFIED] * 2
        assert watcher.percentages() == [2, 50, 100]

    staged(scenario)


def test_a_hanging_target_delays_no_other() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        hold = stage.world.ec2(region="us-east-1").hang()
        watcher = await stage.watch()
        covered = await watcher.next("snapshot_complete")
        assert [target.region for target in covered.snapshot_complete.targets] == ["eu-central-1"]
        hold.release()
        covered = await watcher.next("snapshot_complete")
        assert [target.region for target in covered.snapshot_complete.targets] == ["us-east-1"]

    staged(scenario)


def test_a_resumed_watch_gets_what_it_missed_and_nothing_twice() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        tasks = [ec2.add(percentage=number) for number in range(4)]
        first = await stage.watch()
        await first.during(1)
        ec2.progress(tasks[0], 10)
        await first.during(6)
        other = await stage.watch()
        await other.during(0.5)
        ec2.progress(tasks[1], 20)
        ec2.remove(tasks[2])
        new = ec2.add(percentage=77)
        await other.during(30)
        resumed = await stage.watch(resume=first.token)
        resumed.held = dict(first.held)
        events = await resumed.during(0.5)
        assert events[0].started.resumed
        assert kinds(events)[1:] == ["changes"]
        assert resumed.held == other.held
        assert any(task.ami_id == new.ami_id for task in resumed.held.values())

    staged(scenario)


@pytest.mark.parametrize("trouble", ["another process", "from the future"])
def test_a_token_that_means_nothing_here_gets_a_reset_or_out_of_range(trouble: str) -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        token = watcher.token
        if trouble == "another process":
            await stage.close()
            stage.restart()
        else:
            from imagetasks_server.tokens import ResumeToken, _unpack  # noqa: PLC0415

            question, epoch, revision, targets, *_ = _unpack(token)
            token = ResumeToken(question, epoch, revision + 1000, targets).encode()
        again = await stage.watch(resume=token)
        again.held = dict(watcher.held)
        assert kinds(await again.during(1))[:2] == ["started", "reset"]
        assert again.held.keys() == watcher.held.keys()
        refused = await stage.watch(resume=token, require=True)
        with pytest.raises(Error) as caught:
            await refused.next()
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"

    staged(scenario)


def test_a_damaged_or_foreign_token_is_refused() -> None:
    async def scenario(stage: Stage) -> None:
        watcher = await stage.watch()
        await watcher.during(1)
        for token, selector in (("x" + watcher.token, {}), (watcher.token, {"regions": ["us-east-1"]})):
            with pytest.raises(Error) as caught:
                await stage.watch(resume=token, **selector)
            assert caught.value.reason == "RESUME_TOKEN_INVALID"

    staged(scenario)


def test_a_place_before_dropped_tombstones_is_reset() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        tasks = [ec2.add(percentage=number) for number in range(3)]
        first = await stage.watch()
        await first.during(1)
        other = await stage.watch()
        ec2.remove(tasks[0])
        await other.during(2000)
        resumed = await stage.watch(resume=first.token)
        resumed.held = dict(first.held)
        events = await resumed.during(1)
        assert "reset" in kinds(events)
        assert resumed.held.keys() == other.held.keys()
        refused = await stage.watch(resume=first.token, require=True)
        with pytest.raises(Error) as caught:
            await refused.next()
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"

    staged(scenario)


def test_who_comes_from_another_process_gets_nothing_older_than_what_it_holds() -> None:
    async def scenario(stage: Stage) -> None:
        other = Stage(stage.clock)
        other.world = stage.world
        other.restart()
        # It has just read when the task is created, and would not read again so soon.
        await (await other.watch()).during(6)
        stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        calls = len(stage.world.calls)
        again = await other.watch(resume=watcher.token)
        await again.next("reset")
        again.held = {}
        await again.during(1)
        assert again.held.keys() == watcher.held.keys()
        # Once for all who come so.
        for _ in range(20):
            await (await other.watch(resume=watcher.token)).during(0.01)
        assert len(stage.world.calls) - calls == len(REGIONS)
        await other.close()

    staged(scenario)


def test_a_snapshot_of_many_targets_comes_in_groups() -> None:
    async def scenario(stage: Stage) -> None:
        for region in REGIONS:
            stage.world.ec2(region=region).add_ended(ENOUGH)
        # Then both are known when the watch comes.
        await (await stage.watch()).during(1)
        watcher = await stage.watch()
        events = await watcher.during(1)
        covered = [event.snapshot_complete.targets for event in events if event.HasField("snapshot_complete")]
        assert [[target.region for target in group] for group in covered] == [[region] for region in REGIONS]
        assert len(watcher.held) == ENOUGH * len(REGIONS)

    staged(scenario)


def test_a_target_that_cannot_be_read_is_told_once_and_its_recovery_too() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch(regions=[REGIONS[0]])
        await watcher.during(1)
        stage.world.ec2().fail(aws_error("InternalError", status=500), times=None)
        status = (await watcher.next("target_status")).target_status
        assert status.status.message
        assert status.HasField("read_time")
        assert "target_status" not in kinds(await watcher.during(100))
        stage.world.ec2().recover()
        recovered = (await watcher.next("target_status")).target_status
        assert not recovered.HasField("status")

    staged(scenario)


def test_a_selector_is_followed_into_and_out_of_its_filter() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        task = ec2.add()
        running = [pb.Filter(name="task-state", values=["InProgress"])]
        watcher = await stage.watch(filters=running)
        ended = await stage.watch(filters=[pb.Filter(name="task-state", values=["Completed"])])
        await watcher.during(1)
        await ended.during(1)
        ec2.end(task)
        (gone,) = (await watcher.next("changes")).changes.changes
        assert gone.removal_reason == pb.TaskChange.REMOVAL_REASON_NO_MATCH
        assert gone.task.ec2_store_task_state == "Completed"
        (came,) = (await ended.next("changes")).changes.changes
        assert came.type == pb.TaskChange.TYPE_ADDED

    staged(scenario)


def test_a_large_group_is_split_and_whole_at_its_end() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        for number in range(60):
            ec2.add(age=number, reason="x" * 10_000)
        watcher = await stage.watch(regions=[REGIONS[0]])
        events = [
            e for e in await watcher.during(1) if e.WhichOneof("event") in {"changes", "snapshot_complete"}
        ]
        *changes, last = events
        assert len(changes) >= 3
        assert all(event.ByteSize() < 280 * 1024 and event.changes.continued for event in changes)
        assert not any(event.HasField("resume_token") for event in changes)
        assert last.resume_token
        assert len(watcher.held) == 60

    staged(scenario)


def calls_of(count: int) -> list[tuple[float, str, Ec2Call]]:
    """When which Region is asked what, while so many watch and after they have left."""
    calls: list[tuple[float, str, Ec2Call]] = []

    def noted(clock: VirtualClock, region: str) -> Callable[[Ec2Call], None]:
        return lambda call: calls.append((clock(), region, call))

    async def scenario(clock: VirtualClock) -> None:
        stage = Stage(clock)
        for ec2 in stage.world.all():
            ec2.between = noted(clock, ec2.target.region)
        task = stage.world.ec2().add()
        watchers = [await stage.watch() for _ in range(count)]
        await asyncio.gather(*(watcher.during(20) for watcher in watchers))
        stage.world.ec2().end(task)
        await asyncio.gather(*(watcher.during(35) for watcher in watchers))
        assert all(watcher.percentages() == [100] for watcher in watchers)
        for watcher in watchers:
            await watcher.close()
        await asyncio.sleep(60)
        await stage.close()

    # Drawn alike, jitter makes no difference.
    with drawn_from(0):
        run(scenario, debug=False)
    return calls


def test_a_thousand_watchers_cause_exactly_the_calls_of_one() -> None:
    calls = calls_of(1)
    assert len(calls) >= 8
    assert calls_of(1000) == calls


def test_what_a_describe_reads_is_seen_at_once_and_the_other_way_round() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        task = ec2.add()
        watcher = await stage.watch()
        await watcher.during(1)
        ec2.progress(task, 60)
        request = pb.DescribeStoreImageTasksRequest()
        request.max_age.SetInParent()
        await stage.gateway.service.describe_store_image_tasks(request, Call(stage.clock() + 60))
        began = stage.clock()
        await watcher.next("changes")
        assert stage.clock() == began
        assert watcher.percentages() == [60]
        calls = len(stage.world.calls)
        await stage.gateway.service.describe_store_image_tasks(
            pb.DescribeStoreImageTasksRequest(), Call(stage.clock() + 60)
        )
        assert len(stage.world.calls) == calls

    staged(scenario)


def test_reading_by_itself_spends_no_more_than_half_of_what_the_budget_sustains() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch(regions=[REGIONS[0]])
        await watcher.during(1000)
        assert len(stage.world.ec2().calls) <= 1000 * 0.1 / 2 + 5

    staged(scenario, budget={"capacity": 50, "refill": 0.125, "reserve": 0.2, "initial": 5})


def test_draining_says_goodbye_with_a_token() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2().add()
        watcher = await stage.watch()
        await watcher.during(1)
        stage.gateway.followers.drain()
        (closing,) = await watcher.during(10)
        assert closing.closing.reason == Event.Closing.REASON_DRAINING
        assert closing.resume_token

    staged(scenario)


def test_a_watcher_who_reads_slowly_misses_percentages_and_no_ended_task() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        task, other = ec2.add(), ec2.add()
        slow, quick = await stage.watch(), await stage.watch()
        await slow.during(1)
        for percentage in range(10, 100, 10):
            ec2.progress(task, percentage)
            await quick.during(6)
        ec2.end(task)
        ec2.end(other, failed="AccessDenied")
        await quick.during(6)
        # One that was on its way, and one for all that came after it.
        _, rest = [e for e in await slow.during(0.5) if e.HasField("changes")]
        assert sorted(c.task.ec2_store_task_state for c in rest.changes.changes) == ["Completed", "Failed"]
        assert slow.held == quick.held

    staged(scenario)


def test_a_pace_is_told_and_a_stalled_task_is_a_change_of_its_own() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2()
        task = ec2.add(percentage=0)
        watcher = await stage.watch(regions=[REGIONS[0]])
        await watcher.during(1)
        for percentage in (10, 20, 30):
            await watcher.during(60)
            ec2.progress(task, percentage)
        await watcher.during(10)
        (held,) = watcher.held.values()
        assert held.pace.percent_per_second == pytest.approx(10 / 60, rel=0.2)
        left = held.pace.estimated_completion_time.seconds - stage.clock()
        assert left == pytest.approx(70 / (10 / 60), rel=0.3)
        before = len([event for event in watcher.seen if event.HasField("changes")])
        await watcher.during(1000)
        (stalled,) = watcher.held.values()
        assert stalled.pace.stalled
        assert not stalled.pace.HasField("estimated_completion_time")
        assert len([event for event in watcher.seen if event.HasField("changes")]) == before + 1

    staged(scenario, stalled_after=300.0)


class TestWait:
    def test_it_returns_when_all_have_ended(self) -> None:
        async def scenario(stage: Stage) -> None:
            ec2, other = stage.world.ec2(), stage.world.ec2(region="us-east-1")
            tasks = [ec2.add(), other.add()]
            waiting = asyncio.create_task(stage.wait())
            await asyncio.sleep(20)
            ec2.end(tasks[0])
            await asyncio.sleep(20)
            assert not waiting.done()
            other.end(tasks[1], failed="AccessDenied")
            answer = await waiting
            assert answer.done
            assert {task.ec2_store_task_state for task in answer.store_image_task_results} == {
                "Completed",
                "Failed",
            }
            assert [outcome.source for outcome in answer.target_outcomes] == [pb.SOURCE_LIVE] * 2

        staged(scenario)

    def test_a_task_started_just_before_is_seen(self) -> None:
        async def scenario(stage: Stage) -> None:
            watcher = await stage.watch()
            await watcher.during(20)
            task = stage.world.ec2().add(image(7))
            waiting = asyncio.create_task(stage.wait(image_ids=[image(7)]))
            await settle()
            assert not waiting.done()
            stage.world.ec2().end(task)
            assert (await waiting).done

        staged(scenario)

    def test_nothing_matches_is_said_at_once_or_waited_for(self) -> None:
        async def scenario(stage: Stage) -> None:
            answer = await stage.wait(image_ids=[image(7)])
            assert not answer.done
            assert answer.reason == pb.WaitStoreImageTasksResponse.REASON_NOTHING_MATCHES
            waiting = asyncio.create_task(stage.wait(appear=True, image_ids=[image(7)]))
            await asyncio.sleep(100)
            assert not waiting.done()
            stage.world.ec2().end(stage.world.ec2().add(image(7)))
            assert (await waiting).done

        staged(scenario)

    def test_its_time_may_be_over(self) -> None:
        async def scenario(stage: Stage) -> None:
            stage.world.ec2().add()
            began = stage.clock()
            answer = await stage.wait(100)
            assert (answer.done, answer.reason) == (False, pb.WaitStoreImageTasksResponse.REASON_TIMEOUT)
            assert stage.clock() - began == pytest.approx(100, abs=1)
            assert len(answer.store_image_task_results) == 1

        staged(scenario)

    def test_a_target_that_cannot_be_read_prevents_done(self) -> None:
        async def scenario(stage: Stage) -> None:
            stage.world.ec2().end(stage.world.ec2().add())
            stage.world.ec2(region="us-east-1").fail(aws_error("InternalError", status=500), times=None)
            answer = await stage.wait(100)
            assert answer.reason == pb.WaitStoreImageTasksResponse.REASON_TIMEOUT
            failed = {
                o.target.region: o.status.message for o in answer.target_outcomes if o.HasField("status")
            }
            assert list(failed) == ["us-east-1"]

        staged(scenario)

    def test_draining_is_said(self) -> None:
        async def scenario(stage: Stage) -> None:
            stage.world.ec2().add()
            waiting = asyncio.create_task(stage.wait())
            await asyncio.sleep(1)
            stage.gateway.followers.drain()
            assert (await waiting).reason == pb.WaitStoreImageTasksResponse.REASON_DRAINING

        staged(scenario)

    def test_a_thousand_who_wait_are_one_reader(self) -> None:
        async def scenario(stage: Stage) -> None:
            task = stage.world.ec2().add()
            waits = [asyncio.create_task(stage.wait()) for _ in range(1000)]
            await asyncio.sleep(60)
            stage.world.ec2().end(task)
            assert all(answer.done for answer in await asyncio.gather(*waits))
            assert len(stage.world.ec2().calls) <= 20

        staged(scenario)
