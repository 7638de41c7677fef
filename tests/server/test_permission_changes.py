"""What happens to calls under way when a credential expires, or what its caller may see changes."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers_stage import (
    METHODS,
    REVOKED,
    TOKEN,
    Authority,
    Issuer,
    call,
    entry,
    known,
    over_tls,
    refused,
    sha256,
)
from cryptography import x509
from fake_ec2 import FakeWorld, Hold
from gateway_stage import PATIENCE, Gateway, Serve, eventually, failure
from virtual import EPOCH, VirtualClock
from watch_stage import Event, Stage, kinds, staged

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server import gate, jwt_tokens
from imagetasks_server.access import Access
from imagetasks_server.boundary import METHODS as KINDS
from imagetasks_server.boundary import Kind
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.errors import Error, NotFound, PermissionDenied
from imagetasks_server.permission import Grant, Permission

EUROPE, AMERICA = Grant(regions=("eu-*",)), Grant(regions=("us-*",))
BOTH = Permission("somebody", (EUROPE, AMERICA))
LESS = Permission("somebody", (EUROPE,))
NOTHING = Permission("somebody", (Grant(accounts=("elsewhere",)),))
# Far less than a heartbeat.
AT_ONCE = 0.001
METADATA = (("authorization", f"Bearer {TOKEN}"),)


def removals(events: list[Event]) -> list[tuple[str, int]]:
    return [
        (change.task.region, change.removal_reason)
        for event in events
        for change in event.changes.changes
        if change.type == pb.TaskChange.TYPE_REMOVED
    ]


def furnish(stage: Stage) -> None:
    for region in ("eu-central-1", "us-east-1"):
        stage.world.ec2(region=region).add_ended(2)


def test_a_watch_that_may_see_less_gives_back_at_once_what_it_may_not() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        access = Access(BOTH)
        watcher = await stage.watch(access=access)
        await watcher.during(1)
        assert {task.region for task in watcher.held.values()} == {"eu-central-1", "us-east-1"}
        access.decide(LESS)
        events = await watcher.during(AT_ONCE)
        assert removals(events) == [("us-east-1", pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED)] * 2
        stage.world.ec2(region="us-east-1").add()
        assert {c.task.region for e in await watcher.during(200) for c in e.changes.changes} == set()
        assert {task.region for task in watcher.held.values()} == {"eu-central-1"}

    staged(scenario)


def test_whoever_read_slowly_hears_nothing_of_what_came_after_access_ended() -> None:
    async def scenario(stage: Stage) -> None:
        ec2 = stage.world.ec2(region="us-east-1")
        task = ec2.add(percentage=10)
        access = Access(BOTH)
        watcher = await stage.watch(access=access)
        await watcher.during(1)
        access.decide(LESS)
        ec2.end(task)
        # Somebody else has it read.
        await (await stage.watch()).during(7)
        events = await watcher.during(AT_ONCE)
        (removed,) = [change for event in events for change in event.changes.changes]
        assert removed.removal_reason == pb.TaskChange.REMOVAL_REASON_ACCESS_ENDED
        assert removed.task.ami_id == task.ami_id
        assert removed.task.store_task_state == pb.STORE_TASK_STATE_UNSPECIFIED
        assert not removed.task.HasField("progress_percentage")

    staged(scenario)


def test_a_watch_that_may_see_more_gets_a_snapshot_of_it_at_once() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        access = Access(LESS)
        watcher = await stage.watch(access=access)
        await watcher.during(1)
        access.decide(BOTH)
        events = await watcher.during(1)
        covered = [t.region for e in events for t in e.snapshot_complete.targets]
        assert covered == ["us-east-1"]
        assert {task.region for task in watcher.held.values()} == {"eu-central-1", "us-east-1"}

    staged(scenario)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [({}, PermissionDenied), ({"accounts": ["main"]}, PermissionDenied), ({"regions": ["us-east-1"]}, None)],
)
def test_a_watch_that_may_see_nothing_gives_back_all_and_ends_as_a_new_one_would(
    selector: dict[str, Any], expected: type[Error] | None
) -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        access = Access(BOTH)
        watcher = await stage.watch(access=access, **selector)
        await watcher.during(1)
        held = len(watcher.held)
        assert held
        access.decide(LESS if expected is None else NOTHING)
        with pytest.raises(expected or NotFound) as caught:
            await watcher.during(1)
        assert watcher.held == {}
        assert len(removals(watcher.seen)) == held
        with pytest.raises(expected or NotFound) as again:
            await (await stage.watch(access=Access(access.permission), **selector)).next()
        assert caught.value.status() == again.value.status()

    staged(scenario)


def test_a_named_account_that_is_lost_takes_no_other_with_it() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        access = Access(BOTH)
        watcher = await stage.watch(access=access, regions=["eu-central-1", "us-east-1"])
        await watcher.during(1)
        access.decide(LESS)
        await watcher.during(200)
        assert {task.region for task in watcher.held.values()} == {"eu-central-1"}
        assert kinds(watcher.seen)[-1] == "heartbeat"

    staged(scenario)


def test_a_region_that_cannot_be_read_is_lost_all_the_same() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        access = Access(BOTH)
        watcher = await stage.watch(access=access)
        await watcher.during(1)
        hold = stage.world.ec2(region="us-east-1").hang()
        access.decide(LESS)
        await watcher.during(AT_ONCE)
        assert {task.region for task in watcher.held.values()} == {"eu-central-1"}
        hold.release()

    staged(scenario)


def test_a_watch_says_goodbye_when_its_credential_expires() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        watcher = await stage.watch(access=Access(BOTH, expires=stage.clock() + 33.3))
        await watcher.during(33.2)
        assert "closing" not in kinds(watcher.seen)
        (event,) = await watcher.during(0.2)
        assert event.closing.reason == Event.Closing.REASON_CREDENTIAL_EXPIRED
        assert event.resume_token
        with pytest.raises(StopAsyncIteration):
            await watcher.next()
        resumed = await stage.watch(resume=watcher.token, access=Access(BOTH))
        assert (await resumed.next()).started.resumed

    staged(scenario)


def test_a_wait_goes_on_with_what_it_may_see() -> None:
    async def scenario(stage: Stage) -> None:
        furnish(stage)
        stage.world.ec2(region="us-east-1").add()
        access = Access(BOTH)
        waiting = asyncio.create_task(stage.wait(access=access))
        await asyncio.sleep(20)
        assert not waiting.done()
        access.decide(LESS)
        answer = await asyncio.wait_for(waiting, 1)
        assert answer.done
        assert {task.region for task in answer.store_image_task_results} == {"eu-central-1"}
        assert [outcome.target.region for outcome in answer.target_outcomes] == ["eu-central-1"]

    staged(scenario)


def test_a_wait_waits_for_what_it_may_see_now() -> None:
    async def scenario(stage: Stage) -> None:
        stage.world.ec2(region="us-east-1").add()
        access = Access(LESS)
        waiting = asyncio.create_task(stage.wait(access=access, appear=True))
        await asyncio.sleep(20)
        access.decide(BOTH)
        await asyncio.sleep(20)
        assert not waiting.done()
        task = stage.world.ec2(region="us-east-1").tasks[0]
        stage.world.ec2(region="us-east-1").end(task)
        assert {task.region for task in (await waiting).store_image_task_results} == {"us-east-1"}

    staged(scenario)


@pytest.fixture
def world(clock: VirtualClock) -> FakeWorld:
    world = FakeWorld(clock, {"main": ("eu-central-1", "us-east-1"), "other": ("eu-central-1",)})
    world.ec2().add()
    return world


def both(**more: Any) -> dict[str, Any]:
    return {
        "callers": [
            entry("one", token_sha256=sha256(TOKEN), accounts="*", regions="*"),
            entry("two", token_sha256=sha256(REVOKED)),
        ],
        **more,
    }


LONG = {
    "DescribeStoreImageTasks": pb.DescribeStoreImageTasksRequest(),
    "StreamStoreImageTasks": pb.StreamStoreImageTasksRequest(),
    "WatchStoreImageTasks": pb.WatchStoreImageTasksRequest(),
    "WaitStoreImageTasks": pb.WaitStoreImageTasksRequest(),
    "ListTargets": pb.ListTargetsRequest(),
}


async def to_its_end(stub: Any, name: str, metadata: Any, deadline: float = PATIENCE) -> list[Any]:
    opened = getattr(stub, name)(LONG[name], metadata=metadata, timeout=deadline)
    return [each async for each in opened] if KINDS[name] in {Kind.STREAM, Kind.WATCH} else [await opened]


async def hanging(
    gateway: Gateway, name: str, metadata: Any = METADATA, stub: Any = None, deadline: float = PATIENCE
) -> asyncio.Task[Any]:
    """A call that hangs in the gateway: EC2, or finding out its targets, does not answer."""
    hold = gateway.world.ec2().hang()
    running = asyncio.create_task(to_its_end(stub or gateway.stub, name, metadata, deadline))
    running.add_done_callback(lambda _: hold.release())
    await eventually(lambda: gateway.gateway.gate._inside)
    if name != "ListTargets":
        await hold.reached()
    return running


@pytest.mark.parametrize("name", [name for name in LONG if name != "ListTargets"])
async def test_a_caller_whose_entry_went_is_ended_at_once(serve: Serve, name: str) -> None:
    gateway = await serve(**both())
    running = await hanging(gateway, name)
    settings = both()
    gateway.gateway.gate.replace(Settings(callers=settings["callers"][1:]))
    ended = await failure(running)
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")


@pytest.mark.parametrize("name", [name for name in LONG if name != "ListTargets"])
async def test_a_caller_who_may_not_call_this_any_more_is_ended_at_once(serve: Serve, name: str) -> None:
    gateway = await serve(**both())
    running = await hanging(gateway, name)
    narrow = entry("one", token_sha256=sha256(TOKEN), methods="ListTargets")
    gateway.gateway.gate.replace(Settings(callers=[narrow]))
    ended = await failure(running)
    assert (ended.code, ended.reason) == (grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_PERMITTED")


@pytest.mark.parametrize("name", [name for name in LONG if name != "ListTargets"])
async def test_a_jwt_that_expires_ends_its_call(
    serve: Serve, name: str, clock: VirtualClock, tmp_path: Path
) -> None:
    issuer = Issuer()
    gateway = await serve(**known(tmp_path / "jwks.json", issuer))
    metadata = [("authorization", f"Bearer {issuer.token(lifetime=100, now=clock())}")]
    running = await hanging(gateway, name, metadata)
    # With the time that clocks may differ.
    clock.advance(131)
    if KINDS[name] is Kind.WATCH:
        messages = await running
        assert messages[-1].closing.reason == Event.Closing.REASON_CREDENTIAL_EXPIRED
    else:
        ended = await failure(running)
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_EXPIRED")


@pytest.mark.parametrize("name", [name for name in LONG if name != "ListTargets"])
async def test_a_certificate_that_expires_ends_its_call(
    serve: Serve, name: str, clock: VirtualClock, tmp_path: Path
) -> None:
    gateway = await serve(**known(tmp_path / "jwks.json", Issuer()))
    authority = Authority()
    spiffe = x509.UniformResourceIdentifier("spiffe://example.org/build/7")
    async with over_tls(gateway, authority, authority.leaf(spiffe, expires=EPOCH + 1000)) as channel:
        stub: Any = StoreImageTaskServiceStub(channel)
        running = await hanging(gateway, name, (), stub)
        clock.advance(1001)
        if KINDS[name] is Kind.WATCH:
            assert (await running)[-1].closing.reason == Event.Closing.REASON_CREDENTIAL_EXPIRED
        else:
            assert (await failure(running)).reason == "CREDENTIAL_EXPIRED"


async def test_a_stream_shows_no_more_of_what_went_out_of_sight(serve: Serve, world: FakeWorld) -> None:
    gateway = await serve(**both())
    world.ec2("main", "us-east-1").add_ended(2)
    hold = world.ec2("main", "us-east-1").hang()
    running = asyncio.create_task(to_its_end(gateway.stub, "StreamStoreImageTasks", METADATA))
    await hold.reached()
    gateway.gateway.gate.replace(Settings(callers=[entry("one", token_sha256=sha256(TOKEN))]))
    hold.release()
    messages = await running
    assert {(m.page.target.account, m.page.target.region) for m in messages if m.HasField("page")} <= {
        ("main", "eu-central-1")
    }
    (lost,) = [m.outcome for m in messages if m.outcome.target.region == "us-east-1"]
    assert (lost.source, lost.status.code) == (pb.SOURCE_NONE, grpc.StatusCode.NOT_FOUND.value[0])
    assert messages[-1].summary.target_count == 3


async def test_a_describe_that_was_under_way_shows_what_may_be_seen_at_its_end(
    serve: Serve, world: FakeWorld
) -> None:
    gateway = await serve(**both())
    hold = world.ec2("main", "us-east-1").hang()
    running = asyncio.create_task(to_its_end(gateway.stub, "DescribeStoreImageTasks", METADATA))
    await hold.reached()
    gateway.gateway.gate.replace(Settings(callers=[entry("one", token_sha256=sha256(TOKEN))]))
    hold.release()
    (answer,) = await running
    assert [(o.target.account, o.target.region) for o in answer.target_outcomes] == [("main", "eu-central-1")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"accounts": "*", "regions": "*"}, {"accounts": "*", "regions": "eu-*"}),
        ({"accounts": "*", "regions": "*"}, {"accounts": "main", "regions": "*"}),
        ({"accounts": "main", "regions": "eu-*"}, {"accounts": "*", "regions": "*"}),
    ],
    ids=["fewer Regions", "fewer accounts", "more"],
)
async def test_targets_that_are_being_found_out_are_listed_by_what_may_be_seen_at_the_end(
    serve: Serve, world: FakeWorld, before: dict[str, str], after: dict[str, str]
) -> None:
    """What may be seen changes while an account does not answer who it is."""
    gateway = await serve(callers=[entry("one", token_sha256=sha256(TOKEN), **before)])
    hold = world.accounts["main"].hold = Hold()
    running = asyncio.create_task(to_its_end(gateway.stub, "ListTargets", METADATA))
    await hold.reached()
    gateway.gateway.gate.replace(Settings(callers=[entry("one", token_sha256=sha256(TOKEN), **after)]))
    assert not running.done()
    hold.release()
    (answer,) = await running
    (expected,) = await to_its_end(gateway.stub, "ListTargets", METADATA)
    shown = [(each.target.account, each.target.region) for each in answer.targets]
    assert shown == [(each.target.account, each.target.region) for each in expected.targets]
    assert shown == {
        "eu-*": [("main", "eu-central-1"), ("other", "eu-central-1")],
        "*": [("main", "eu-central-1"), ("main", "us-east-1")],
    }[after["regions"]] + ([("other", "eu-central-1")] if after == {"accounts": "*", "regions": "*"} else [])


async def test_who_may_list_nothing_any_more_is_told_so_while_targets_are_being_found_out(
    serve: Serve, world: FakeWorld
) -> None:
    gateway = await serve(**both())
    hold = world.accounts["main"].hold = Hold()
    running = asyncio.create_task(to_its_end(gateway.stub, "ListTargets", METADATA))
    await hold.reached()
    gateway.gateway.gate.replace(Settings(callers=both()["callers"][1:]))
    assert (await failure(running)).code is grpc.StatusCode.UNAUTHENTICATED
    hold.release()


async def test_a_gateway_that_asked_nobody_asks_when_callers_are_configured(serve: Serve) -> None:
    gateway = await serve()
    running = await hanging(gateway, "WatchStoreImageTasks", [])
    gateway.gateway.gate.replace(Settings(**both()))
    assert (await failure(running)).reason == "CREDENTIAL_MISSING"


async def test_who_showed_a_token_before_anybody_asked_is_known_by_it(serve: Serve) -> None:
    gateway = await serve()
    running = await hanging(gateway, "WatchStoreImageTasks")
    gateway.gateway.gate.replace(Settings(**both()))
    (access,) = gateway.gateway.gate._inside
    assert (access.ended, access.permission.caller) == (None, "one")
    gateway.gateway.gate.replace(Settings(anonymous={"accounts": ["none"]}))  # type: ignore[arg-type]
    assert (await failure(running)).reason == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("name", [name for name in LONG if name != "ListTargets"])
@pytest.mark.parametrize("is_late", [False, True], ids=["expires later", "has expired"])
async def test_a_certificate_shown_before_anybody_asked_ends_its_call_when_it_expires(
    serve: Serve, name: str, clock: VirtualClock, *, is_late: bool
) -> None:
    gateway = await serve()
    authority = Authority()
    leaf = authority.leaf(x509.DNSName("a.batch.example.org"), expires=EPOCH + 1000)
    async with over_tls(gateway, authority, leaf) as channel:
        stub: Any = StoreImageTaskServiceStub(channel)
        running = await hanging(gateway, name, (), stub, deadline=2000)
        if is_late:
            clock.advance(1001)
        gateway.gateway.gate.replace(Settings(callers=[entry("batch", dns="*.batch.example.org")]))  # type: ignore[list-item]
        if not is_late:
            (access,) = gateway.gateway.gate._inside
            assert (access.ended, access.permission.caller) == (None, "batch")
            clock.advance(1001)
        if KINDS[name] is Kind.WATCH:
            assert (await running)[-1].closing.reason == Event.Closing.REASON_CREDENTIAL_EXPIRED
        else:
            assert (await failure(running)).reason == "CREDENTIAL_EXPIRED"


async def test_callers_cannot_be_taken_out_of_a_gateway_that_runs(serve: Serve) -> None:
    gateway = await serve(**both())
    gate = gateway.gateway.gate
    with pytest.raises(ConfigError, match="callers: nobody is named"):
        gate.check(Settings())
    # Whatever the rest of the new settings says of where it listens.
    gate.replace(Settings(listen="0.0.0.0:0", insecure=True))
    call = gateway.stub.ListTargets(pb.ListTargetsRequest())
    assert (await failure(call)).reason == "CREDENTIAL_MISSING"


async def test_a_gateway_that_was_closed_once_stays_closed(serve: Serve) -> None:
    gate = (await serve()).gateway.gate
    gate.check(Settings())
    gate.replace(Settings(**both()))
    with pytest.raises(ConfigError, match="callers: nobody is named"):
        gate.check(Settings())


async def test_who_stays_the_same_notices_nothing(serve: Serve) -> None:
    gateway = await serve(**both())
    running = await hanging(gateway, "WaitStoreImageTasks")
    (access,) = gateway.gateway.gate._inside
    before = access.permission
    gateway.gateway.gate.replace(Settings(**both()))
    assert access.permission is before
    running.cancel()
    await asyncio.wait([running])


async def test_a_jwt_for_an_audience_that_is_not_ours_any_more_is_ended(
    serve: Serve, clock: VirtualClock, tmp_path: Path
) -> None:
    issuer = Issuer()
    settings = known(tmp_path / "jwks.json", issuer)
    gateway = await serve(**settings)
    metadata = [("authorization", f"Bearer {issuer.token(now=clock())}")]
    running = await hanging(gateway, "WatchStoreImageTasks", metadata)
    settings["jwt"]["audience"] = ["imagetasks", "more"]
    gateway.gateway.gate.replace(Settings(**settings))
    (access,) = gateway.gateway.gate._inside
    assert access.ended is None
    keys = gateway.gateway.gate._keys
    settings["jwt"]["audience"] = "another"
    gateway.gateway.gate.replace(Settings(**settings))
    assert (await failure(running)).reason == "CREDENTIAL_INVALID"
    # The last good keys stay, unless they are somewhere else now.
    assert gateway.gateway.gate._keys is keys
    settings["jwt"]["refresh"] = 7
    gateway.gateway.gate.replace(Settings(**settings))
    assert gateway.gateway.gate._keys is not keys


async def test_a_signature_is_checked_once_as_long_as_its_key_stays(
    serve: Serve, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def verified(*arguments: Any) -> Any:
        checked.append(arguments[0])
        return jwt_tokens.verified(*arguments)

    monkeypatch.setattr(gate, "verified", verified)
    issuer, file = Issuer(), tmp_path / "jwks.json"
    gateway = await serve(**known(file, issuer))
    token = issuer.token(now=clock())
    listing = next(method for method in METHODS if method.name == "ListTargets")
    for _ in range(5):
        await call(gateway.channel, listing, token)
    assert checked == [token]
    # The same id, another key.
    file.write_text(Issuer().jwks())
    keys = gateway.gateway.gate._keys
    assert keys is not None
    clock.advance(3)
    await call(gateway.channel, listing, token)
    await eventually(lambda: keys._task is None)
    assert (await refused(gateway.channel, listing, token)).reason == "CREDENTIAL_INVALID"
    # Remembered is not for ever.
    file.write_text(issuer.jwks())
    clock.advance(3)
    await refused(gateway.channel, listing, token)
    await eventually(lambda: keys._task is None)
    await call(gateway.channel, listing, token)
    clock.advance(4000)
    assert (await refused(gateway.channel, listing, token)).reason == "CREDENTIAL_EXPIRED"


def test_every_method_is_tried() -> None:
    assert set(LONG) == {method.name for method in METHODS}
