"""Metrics, as Prometheus scrapes them from a whole gateway."""

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from fake_ec2 import FakeWorld, aws_error, image
from gateway_stage import NO_AGE, Gateway, Serve, eventually, outcomes
from scrapes import Scrape, watched_by_prometheus
from virtual import EPOCH, VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import metrics
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.observation import measured
from imagetasks_server.record import Record
from imagetasks_server.roster import OrganizationState
from imagetasks_server.tally import Kind

ONE = {"accounts": ["main"], "regions": ["eu-central-1"]}
TARGET = 'account="main",region="eu-central-1"'
FACTS = (
    metrics.CALLS_ARRIVED,
    metrics.CALLS_HANDED_OVER,
    metrics.SERVING,
    metrics.CONFIGURATION_UP,
    metrics.CERTIFICATE,
    metrics.CERTIFICATE_UP,
    metrics.KEYS_UP,
)
THROTTLED = aws_error("RequestLimitExceeded", status=503)


async def test_ten_callers_who_share_a_read_cost_one_call_and_avoid_nine(gateway: Gateway) -> None:
    hold = gateway.world.ec2().hang()
    async with watched_by_prometheus(gateway) as prometheus:
        calls = [asyncio.create_task(gateway.describe(**ONE)) for _ in range(10)]
        await hold.reached()
        await eventually(lambda: gateway.inside == 10)
        during = await prometheus.scrape()
        hold.release()
        await asyncio.gather(*calls)
        after = await prometheus.scrape()
        await gateway.describe(**ONE)
        later = await prometheus.scrape()
    describe = 'method="DescribeStoreImageTasks"'
    assert during[f"imagetasks_calls_in_flight{{{describe}}}"] == 10
    assert after[f"imagetasks_calls_in_flight{{{describe}}}"] == 0
    assert after[f'imagetasks_calls_total{{code="OK",{describe}}}'] == 10
    assert after[f"imagetasks_call_seconds_count{{{describe}}}"] == 10
    assert after['imagetasks_ec2_calls_total{caller="anonymous",kind="full"}'] == 1
    assert after['imagetasks_ec2_call_seconds_count{kind="full"}'] == 1
    assert after['imagetasks_answers_total{caller="anonymous",how="own"}'] == 1
    assert after['imagetasks_answers_total{caller="anonymous",how="shared"}'] == 9
    assert later['imagetasks_answers_total{caller="anonymous",how="cached"}'] == 1
    assert sum(value for name, value in later.samples.items() if "ec2_calls_total" in name) == 1


async def test_each_caller_is_counted_by_its_configured_name_only(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = Record.__enter__
    names = iter(["alice", "mallory-1", "mallory-2"])

    def authenticated(record: Record) -> Record:
        name = next(names)
        record.identified(name, name)
        return entered(record)

    monkeypatch.setattr(Record, "__enter__", authenticated)
    gateway.gateway.records.metrics.callers = frozenset({"alice"})
    async with watched_by_prometheus(gateway) as prometheus:
        for _ in range(3):
            await gateway.describe(max_age=NO_AGE, **ONE)
        seen = await prometheus.scrape()
    assert seen['imagetasks_answers_total{caller="alice",how="own"}'] == 1
    assert seen['imagetasks_answers_total{caller="other",how="own"}'] == 2
    assert seen['imagetasks_ec2_calls_total{caller="alice",kind="full"}'] == 1
    assert seen['imagetasks_ec2_calls_total{caller="other",kind="head"}'] == 2
    assert "mallory" not in seen.text


async def test_every_kind_of_read_is_counted_as_such(
    serve: Serve, world: FakeWorld, clock: VirtualClock
) -> None:
    ec2 = world.ec2()
    # Too deep for pages: its image is asked for by id.
    ec2.add(image(1000), age=10_000)
    ec2.add_ended(900)
    gateway = await serve(full_read_every=60)
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe(**ONE)
        await gateway.describe(max_age=NO_AGE, **ONE)
        await gateway.refused(image_ids=[image(2000)], **ONE)
        await gateway.refused(dry_run=True, **ONE)
        before = await prometheus.scrape()
        clock.advance(100)
        await gateway.describe(max_age=NO_AGE, **ONE)
        await eventually(lambda: gateway.registry.of(_target(gateway)).reader.is_idle)
        after = await prometheus.scrape()
    assert _calls(before) == {
        "full anonymous": 5,
        "head anonymous": 1,
        "ids anonymous": 1,
        "lookup anonymous": 1,
        "dry_run anonymous": 1,
    }
    # The first page was a head read's; the sweep goes on from there, for nobody.
    assert _calls(after) == _calls(before) | {"head anonymous": 2, "ids anonymous": 2, "sweep gateway": 4}
    assert sum(_calls(after).values()) == len(ec2.calls)
    assert after['imagetasks_ec2_errors_total{kind="lookup",reason="IMAGE_NOT_FOUND"}'] == 1
    assert {each.split()[0] for each in _calls(after)} == set(Kind)


async def test_stale_answers_errors_and_throttles_are_counted(
    gateway: Gateway, world: FakeWorld, clock: VirtualClock
) -> None:
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe(**ONE)
        world.ec2().fail(THROTTLED)
        clock.advance(60)
        stale = await gateway.describe(**ONE)
        world.ec2("other").fail(aws_error("InternalError", status=500))
        await gateway.refused(accounts=["other"])
        seen = await prometheus.scrape()
    assert outcomes(stale)["main", "eu-central-1"][0] == "STALE"
    assert seen['imagetasks_answers_total{caller="anonymous",how="stale"}'] == 1
    assert seen['imagetasks_answers_total{caller="anonymous",how="none"}'] == 1
    assert seen[f"imagetasks_ec2_throttles_total{{{TARGET}}}"] == 1
    assert seen['imagetasks_ec2_errors_total{kind="head",reason="AWS_THROTTLED"}'] == 1
    assert seen[f"imagetasks_target_failing{{{TARGET}}}"] == 1
    assert seen['imagetasks_target_failing{account="other",region="eu-central-1"}'] == 1
    assert seen['imagetasks_calls_total{code="UNAVAILABLE",method="DescribeStoreImageTasks"}'] == 1


async def test_the_budget_is_told_and_how_long_was_waited_for_it(serve: Serve, clock: VirtualClock) -> None:
    gateway = await serve(budget={"capacity": 20, "refill": 0.5, "reserve": 0.0, "initial": 1})
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe(**ONE)
        call = asyncio.create_task(gateway.describe(max_age=NO_AGE, **ONE))
        await eventually(lambda: _budget(gateway).waited)
        clock.advance(10)
        await call
        seen = await prometheus.scrape()
    assert seen["imagetasks_budget_capacity"] == 20
    # A token takes two seconds, of which some have gone by.
    assert 0 < seen[f"imagetasks_budget_waited_seconds_total{{{TARGET}}}"] <= 2
    assert 0 < seen[f"imagetasks_budget_tokens{{{TARGET}}}"] < 20


async def test_tasks_are_told_by_state_as_they_change(gateway: Gateway, world: FakeWorld) -> None:
    ec2 = world.ec2()
    first, second, gone = ec2.add(), ec2.add(), ec2.add(age=3600)
    ec2.add_ended(3)
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe(**ONE)
        before = await prometheus.scrape()
        ec2.end(first)
        ec2.end(second, failed="no space")
        ec2.end(gone)
        await gateway.describe(max_age=NO_AGE, **ONE)
        after = await prometheus.scrape()
    assert _tasks(before) == {"in_progress": 3, "completed": 3, "failed": 0}
    assert _tasks(after) == {"in_progress": 0, "completed": 5, "failed": 1}
    assert after[f"imagetasks_target_read_timestamp_seconds{{{TARGET}}}"] >= EPOCH


async def test_a_watch_is_counted_by_messages_changes_and_lag(
    gateway: Gateway, world: FakeWorld, clock: VirtualClock, log: list[Any]
) -> None:
    task = world.ec2().add()
    request = pb.WatchStoreImageTasksRequest(selector=pb.TaskSelector(**ONE))
    async with watched_by_prometheus(gateway) as prometheus:
        call = gateway.stub.WatchStoreImageTasks(request)
        events = [await call.read() for _ in range(3)]
        assert events[-1].HasField("snapshot_complete")
        opened = await prometheus.scrape()
        world.ec2().end(task)
        clock.advance(6)
        assert (await call.read()).changes.changes
        await eventually(
            lambda: gateway.gateway.records.metrics.registry.get_sample_value(
                "imagetasks_watch_lag_seconds_count"
            )
        )
        told = await prometheus.scrape()
        call.cancel()
        await gateway.boundary.idle()
        ended = await prometheus.scrape()
    watch = 'method="WatchStoreImageTasks"'
    assert opened[f"imagetasks_calls_in_flight{{{watch}}}"] == 1
    assert opened[f"imagetasks_call_seconds_count{{{watch}}}"] == 1
    assert opened[f"imagetasks_messages_total{{{watch}}}"] == 3
    assert opened[f"imagetasks_target_poll_interval_seconds{{{TARGET}}}"] >= 5
    assert opened["imagetasks_watch_lag_seconds_count"] == 0
    assert told[f"imagetasks_messages_total{{{watch}}}"] == 4
    assert told["imagetasks_watch_changes_total"] == 2
    assert told["imagetasks_watch_lag_seconds_count"] == 1
    assert ended[f"imagetasks_calls_in_flight{{{watch}}}"] == 0
    assert ended[f'imagetasks_calls_total{{code="CANCELLED",{watch}}}'] == 1
    assert told['imagetasks_ec2_calls_total{caller="gateway",kind="full"}'] == 1
    (line,) = [each for each in log if each["event"] == "call"]
    assert (line["messages"], line["changes"], line["code"]) == (4, 2, "CANCELLED")
    assert line["lag_ms"] >= 0


async def test_accounts_organizations_and_the_certificate_are_told(serve: Serve, world: FakeWorld) -> None:
    world.accounts["other"].discovery_fault = aws_error("ExpiredToken")
    gateway = await serve()
    company = [OrganizationState("company", 7, up=False), OrganizationState("sister", 2, up=True)]
    expiry = iter([None, EPOCH + 3600])
    async with watched_by_prometheus(
        gateway, organizations=lambda: company, facts={metrics.CERTIFICATE: lambda: next(expiry)}
    ) as prometheus:
        await gateway.describe()
        without = await prometheus.scrape()
        seen = await prometheus.scrape()
    assert "imagetasks_certificate_expiry_timestamp_seconds{" not in without.text
    assert "imagetasks_certificate_expiry_timestamp_seconds" not in without.samples
    assert seen["imagetasks_certificate_expiry_timestamp_seconds"] == EPOCH + 3600
    assert seen['imagetasks_account_up{account="main"}'] == 1
    assert seen.samples['imagetasks_account_up{account="other"}'] == 0
    assert seen['imagetasks_account_targets{account="main",region_source="discovered"}'] == 2
    assert seen.samples['imagetasks_organization_up{organization="company"}'] == 0
    assert seen['imagetasks_organization_up{organization="sister"}'] == 1
    assert seen['imagetasks_organization_accounts{organization="company"}'] == 7


async def test_every_metric_moves_and_is_as_declared(
    serve: Serve, world: FakeWorld, clock: VirtualClock
) -> None:
    world.ec2().add()
    gateway = await serve(budget={"capacity": 20, "refill": 0.5, "reserve": 0.0, "initial": 1})
    company = [OrganizationState("company", 7, up=True)]
    async with watched_by_prometheus(
        gateway, organizations=lambda: company, facts=dict.fromkeys(FACTS, lambda: 1)
    ) as prometheus:
        call = gateway.stub.WatchStoreImageTasks(
            pb.WatchStoreImageTasksRequest(selector=pb.TaskSelector(**ONE))
        )
        for _ in range(3):
            await call.read()
        world.ec2().add()
        clock.advance(6)
        assert (await call.read()).changes.changes
        await gateway.describe(**ONE)
        # Waits for the budget, and is throttled.
        waiting = asyncio.create_task(gateway.describe(max_age=NO_AGE, **ONE))
        while not _budget(gateway).waited:
            await gateway.describe(max_age=NO_AGE, **ONE)
        world.ec2().fail(THROTTLED)
        clock.advance(6)
        await waiting
        await eventually(lambda: _budget(gateway).throttles)
        seen = await prometheus.scrape()
        call.cancel()
    moved = {name.partition("{")[0] for name, value in seen.samples.items() if value}
    suffixes = {"counter": "", "gauge": "", "histogram": "_count"}
    assert {each.name for each in metrics.DECLARED if each.name + suffixes[each.kind] not in moved} == set()
    _is_as_declared(seen)


def _is_as_declared(seen: Scrape) -> None:
    """Nothing is told under our name that is not declared, nor with other labels."""
    by_name = {each.name: each for each in metrics.DECLARED}
    for sample in seen.samples:
        name, _, labels = sample.partition("{")
        if not name.startswith("imagetasks_") or name.endswith("_created"):
            continue
        base = name if name in by_name else name.rpartition("_")[0]
        told = {part.partition("=")[0] for part in labels.rstrip("}").split('",') if part} - {"le"}
        assert told == set(by_name[base].labels), sample


async def test_the_process_tells_of_itself(gateway: Gateway) -> None:
    async with watched_by_prometheus(gateway) as prometheus:
        seen = await prometheus.scrape()
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"):
        assert seen[name] > 0
    assert "python_gc_collections_total" in seen.text
    assert "python_info" in seen.text


async def test_a_scraper_may_ask_for_openmetrics(gateway: Gateway) -> None:
    async with watched_by_prometheus(gateway) as prometheus, aiohttp.ClientSession() as session:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with session.get(prometheus.url, headers=accept) as response:
            text = await response.text()
            assert response.content_type == "application/openmetrics-text"
    assert text.count("# EOF") == 1
    assert text.endswith("# EOF\n")


async def test_nothing_else_is_served_there(gateway: Gateway) -> None:
    async with watched_by_prometheus(gateway) as prometheus, aiohttp.ClientSession() as session:
        for path in ("", "/", "/metrics/..", "/debug", "/metrics/x"):
            async with session.get(prometheus.url.removesuffix("/metrics") + path) as response:
                assert response.status == 404
        async with session.post(prometheus.url) as response:
            assert response.status == 405


async def test_a_port_in_use_is_a_fault_of_the_configuration(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"^metrics_listen: cannot listen on"):
            async with measured(settings, gateway.gateway):
                pass


async def test_two_names_of_one_account_are_one_target(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",), "alias": ("eu-central-1",)})
    world.accounts["alias"].account_id = world.accounts["main"].account_id
    gateway = await serve(world)
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe()
        seen = await prometheus.scrape()
    assert [name for name in seen.samples if name.startswith("imagetasks_budget_tokens")] == [
        'imagetasks_budget_tokens{account="alias",region="eu-central-1"}'
    ]


def _target(gateway: Gateway) -> Any:
    return next(
        each
        for each in gateway.gateway.targets.known()
        if (each.account, each.region) == ("main", "eu-central-1")
    )


def _budget(gateway: Gateway) -> Any:
    return gateway.registry.budget_of(_target(gateway))


def _calls(seen: Scrape) -> dict[str, float]:
    found = {}
    for sample, value in seen.samples.items():
        if sample.startswith("imagetasks_ec2_calls_total"):
            _, caller, _, kind, _ = sample.split('"')
            found[f"{kind} {caller}"] = value
    return found


def _tasks(seen: Scrape) -> dict[str, float]:
    return {
        state: seen.samples[f'imagetasks_tasks{{{TARGET},state="{state}"}}']
        for state in ("in_progress", "completed", "failed")
    }


async def test_many_targets_are_told_under_one_heading(serve: Serve, clock: VirtualClock) -> None:
    regions = tuple(f"eu-central-{n}" for n in range(1, 35))
    gateway = await serve(FakeWorld(clock, {f"account-{n}": regions for n in range(10)}))
    async with watched_by_prometheus(gateway) as prometheus:
        await gateway.describe()
        seen = await prometheus.scrape()
    assert seen.text.count("# TYPE imagetasks_tasks gauge\n") == 1
    assert seen.text.count("# HELP imagetasks_tasks ") == 1
    assert sum(sample.startswith("imagetasks_tasks{") for sample in seen.samples) == 3 * 340
    assert sum(sample.startswith("imagetasks_budget_tokens{") for sample in seen.samples) == 340
