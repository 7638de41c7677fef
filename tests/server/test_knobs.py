"""Every knob does what it says: each test fails when its knob is ignored.

A knob without a test fails `test_every_knob_has_its_test`.
"""

import asyncio
import contextlib
import functools
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import structlog
from fake_ec2 import FakeWorld, Hold, aws_error
from gateway_stage import PATIENCE, Gateway, Serve, eventually, failure, outcomes, seconds
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from virtual import VirtualClock, run

import raw_http2
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import config, listening
from imagetasks_server.assembly import assemble
from imagetasks_server.contract import SERVICE
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Error
from imagetasks_server.grpc_server import new_server
from imagetasks_server.health import NOT_SERVING, Credentials, Health
from imagetasks_server.identity import ANONYMOUS
from imagetasks_server.listening import listen
from imagetasks_server.observation import measured, traced
from imagetasks_server.service import Call
from imagetasks_server.targets import Identity
from imagetasks_server.telemetry import configure_log
from imagetasks_server.tracked import FORGET_EVERY

Test = TypeVar("Test", bound=Callable[..., Any])

PROVEN: set[str] = set()
# Where a table's knobs are proven if not here: those of one account or organization.
ELSEWHERE = {
    "accounts": "test_account_settings",
    "organizations": "test_organizations",
    "callers": "test_callers",
    "anonymous": "test_callers",
    "jwt": "test_jwks",
}
AMPLE = {"capacity": 1e6, "refill": 1e6, "initial": 1e6}
REGION = "eu-central-1"
BROKEN = aws_error("InternalError", status=500)


def proves(*knobs: str) -> Callable[[Test], Test]:
    """Marks a test with the knobs that it fails without."""
    PROVEN.update(knobs)
    return lambda test: test


def knobs(model: Any = config.Settings, prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if hasattr(inner, "model_fields"):
            found |= knobs(inner, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_every_knob_has_its_test() -> None:
    assert knobs() - ELSEWHERE.keys() == PROVEN


class Stage:
    """A gateway over one target, on virtual time."""

    def __init__(self, clock: VirtualClock, page_size: int = 200, **settings: Any) -> None:
        self.clock = clock
        self.world = FakeWorld(clock, {"main": (REGION,)}, page_size=page_size)
        self.ec2 = self.world.ec2()
        settings = {"accounts": [{"name": "main"}], "budget": AMPLE, **settings}
        self.gateway = assemble(config.Settings(**settings), self.world.accounts, clock)

    async def outcome(self, deadline: float = 1e6, **fields: Any) -> tuple[str, str]:
        """Source and reason of a describe; the reason alone where it fails."""
        request = pb.DescribeStoreImageTasksRequest(**fields)
        try:
            answer = await self.gateway.service.describe_store_image_tasks(
                request, Call(self.clock() + deadline)
            )
        except Error as error:
            return ("NONE", error.reason)
        (outcome,) = outcomes(pb.DescribeStoreImageTasksResponse.FromString(answer)).values()
        return outcome

    async def state(self) -> pb.TargetState:
        call = Call(self.clock() + 60)
        answer = await self.gateway.service.list_targets(pb.ListTargetsRequest(), call)
        return answer.targets[0]


Result = TypeVar("Result")


def staged(scenario: Callable[[Stage], Awaitable[Result]], **settings: Any) -> Result:
    async def with_stage(clock: VirtualClock) -> Result:
        stage = Stage(clock, **settings)
        try:
            return await scenario(stage)
        finally:
            await stage.gateway.close()

    return run(with_stage)


@proves("budget.capacity", "budget.refill", "budget.reserve", "budget.share", "budget.initial")
def test_the_budget_is_what_is_left_of_ec2s_bucket() -> None:
    async def budget(stage: Stage) -> tuple[float, float, float]:
        found = (await stage.state()).budget
        return found.capacity, found.refill_per_second, found.available

    assert staged(budget, budget={}) == pytest.approx((40, 0.4, 5))
    assert staged(budget, budget={"capacity": 100}) == pytest.approx((80, 0.4, 5))
    assert staged(budget, budget={"refill": 1.0}) == pytest.approx((40, 0.8, 5))
    assert staged(budget, budget={"reserve": 0.5}) == pytest.approx((25, 0.25, 5))
    assert staged(budget, budget={"share": 0.5}) == pytest.approx((20, 0.2, 2.5))
    assert staged(budget, budget={"initial": 7}) == pytest.approx((40, 0.4, 7))


@proves("default_max_age")
def test_default_max_age_is_how_old_an_answer_may_be() -> None:
    async def after_3_seconds(stage: Stage) -> str:
        await stage.outcome()
        await asyncio.sleep(3)
        return (await stage.outcome())[0]

    assert staged(after_3_seconds) == "CACHED"
    assert staged(after_3_seconds, default_max_age=2) == "LIVE"


async def read_times(stage: Stage, seconds: float, **fields: Any) -> list[float]:
    """When EC2 was asked while somebody watched for so long, counted from the start."""
    began, times = stage.clock(), []
    stage.ec2.between = lambda _: times.append(stage.clock() - began)
    request = pb.WatchStoreImageTasksRequest(**fields)
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(seconds),
            contextlib.aclosing(stage.gateway.service.watch_store_image_tasks(request, Call(1e12))) as events,
        ):
            async for _ in events:
                pass
    return times


@proves("poll_interval", "idle_poll_interval")
def test_a_followed_target_is_read_in_its_rhythm() -> None:
    async def reads(stage: Stage) -> tuple[int, int]:
        idle = len(await read_times(stage, 1000))
        await asyncio.sleep(100)
        stage.ec2.add()
        return idle, len(await read_times(stage, 1000))

    def about(count: int) -> Any:
        # The first at once, and up to a tenth of jitter.
        return pytest.approx(count * 0.95 + 1, rel=0.06)

    assert staged(reads) == (about(33), about(200))
    assert staged(reads, poll_interval=20) == (about(33), about(50))
    assert staged(reads, idle_poll_interval=100) == (about(10), about(200))


@proves("poll_linger")
def test_poll_linger_is_how_long_reading_goes_on_after_the_last_follower() -> None:
    async def reads_after(stage: Stage) -> int:
        stage.ec2.add()
        await read_times(stage, 10)
        before = len(stage.ec2.calls)
        await asyncio.sleep(1000)
        return len(stage.ec2.calls) - before

    assert staged(reads_after, poll_linger=0) == 0
    assert 15 <= staged(reads_after, poll_linger=100) <= 20


@proves("heartbeat_interval")
def test_heartbeat_interval_is_how_often_a_quiet_watcher_hears() -> None:
    async def heartbeats(stage: Stage) -> int:
        count = 0
        request = pb.WatchStoreImageTasksRequest()
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(101),
                contextlib.aclosing(
                    stage.gateway.service.watch_store_image_tasks(request, Call(1e12))
                ) as all_,
            ):
                async for event in all_:
                    count += event.WhichOneof("event") == "heartbeat"
        return count

    assert staged(heartbeats) == 4
    assert staged(heartbeats, heartbeat_interval=50) == 2


@proves("stalled_after")
def test_stalled_after_is_how_long_a_task_may_rest() -> None:
    async def stalled(stage: Stage) -> bool:
        stage.ec2.add(percentage=20)
        await stage.outcome()
        await asyncio.sleep(100)
        await stage.outcome()
        (tracked,) = stage.gateway.registry
        return tracked.view.listed()[0].task.pace.stalled

    assert not staged(stalled)
    assert staged(stalled, stalled_after=99)


@proves("page_timeout")
def test_page_timeout_ends_a_hanging_call() -> None:
    async def waited(stage: Stage) -> float:
        stage.ec2.hang()
        began = stage.clock()
        assert await stage.outcome() == ("NONE", "AWS_TIMEOUT")
        return stage.clock() - began

    assert staged(waited) == pytest.approx(20)
    assert staged(waited, page_timeout=3) == pytest.approx(3)


@proves("read_timeout")
def test_read_timeout_ends_a_read_that_is_paid_too_slowly() -> None:
    async def many_pages(stage: Stage) -> str:
        stage.ec2.add_ended(10)
        return (await stage.outcome())[1]

    # Nine more pages at ten seconds each.
    slow = {"capacity": 50, "refill": 0.1, "reserve": 0, "initial": 1}
    assert staged(many_pages, page_size=1, budget=slow) == ""
    assert staged(many_pages, page_size=1, budget=slow, read_timeout=50) == "AWS_TIMEOUT"


@proves("discovery_timeout")
def test_discovery_timeout_ends_the_waiting_for_an_account() -> None:
    async def waited(stage: Stage) -> float:
        hold = stage.world.accounts["main"].hold = Hold()
        began = stage.clock()
        assert await stage.outcome() == ("NONE", "AWS_TIMEOUT")
        hold.release()
        return stage.clock() - began

    assert staged(waited) == pytest.approx(10)
    assert staged(waited, discovery_timeout=2) == pytest.approx(2)


@proves("region_expiry")
def test_region_expiry_is_when_regions_are_asked_for_again() -> None:
    async def asked_after_10_minutes(stage: Stage) -> int:
        await stage.outcome()
        await asyncio.sleep(600)
        await stage.outcome()
        return stage.world.accounts["main"].asked.count("identity")

    assert staged(asked_after_10_minutes) == 1
    assert staged(asked_after_10_minutes, region_expiry=500) == 2


@proves("confirm_removal_after")
def test_confirm_removal_after_is_the_time_between_two_reads_that_lack_a_task() -> None:
    async def known_after_two_reads(stage: Stage) -> int:
        task = stage.ec2.add(state="Completed", age=86400)
        await stage.outcome()
        stage.ec2.remove(task)
        for _ in range(2):
            await asyncio.sleep(20)
            await stage.outcome()
        return (await stage.state()).task_count

    assert staged(known_after_two_reads, full_read_every=10) == 0
    assert staged(known_after_two_reads, full_read_every=10, confirm_removal_after=100) == 1


@proves("full_read_every")
def test_full_read_every_is_how_soon_the_whole_list_is_read_again() -> None:
    async def calls(stage: Stage) -> int:
        stage.ec2.add_ended(1000)
        await stage.outcome()
        await asyncio.sleep(300)
        before = len(stage.ec2.calls)
        await stage.outcome()
        # A sweep goes on behind the answer.
        await asyncio.sleep(10)
        return len(stage.ec2.calls) - before

    assert staged(calls) == 1
    assert staged(calls, full_read_every=200) == 5


@proves("distrust_for")
def test_distrust_for_is_how_long_a_list_that_contradicted_itself_is_read_in_full() -> None:
    async def calls(stage: Stage) -> int:
        (task, *_) = stage.ec2.add_ended(1000)
        await stage.outcome()
        # A finished task changes.
        stage.ec2.end(task, failed="NoSuchBucket")
        await asyncio.sleep(10)
        await stage.outcome()
        await asyncio.sleep(100)
        before = len(stage.ec2.calls)
        await stage.outcome()
        await asyncio.sleep(10)
        return len(stage.ec2.calls) - before

    assert staged(calls) == 5
    assert staged(calls, distrust_for=50) == 1


@proves("stale_for")
def test_stale_for_is_how_long_the_last_state_stands_in() -> None:
    async def after_10_minutes(stage: Stage) -> tuple[str, str]:
        await stage.outcome()
        stage.ec2.fail(BROKEN, times=None)
        await asyncio.sleep(600)
        return await stage.outcome()

    assert staged(after_10_minutes) == ("STALE", "AWS_INTERNAL_ERROR")
    assert staged(after_10_minutes, stale_for=500) == ("NONE", "AWS_INTERNAL_ERROR")


@proves("keep_unused_for")
def test_keep_unused_for_is_how_long_an_unused_state_is_kept() -> None:
    async def kept(stage: Stage) -> int:
        stage.world.accounts["main"].regions = (REGION, "us-east-1")
        stage.world.accounts["main"].by_region["us-east-1"] = stage.ec2
        await stage.outcome(regions=[REGION])
        await asyncio.sleep(600 + FORGET_EVERY)
        await stage.outcome(regions=["us-east-1"])
        return len(list(stage.gateway.registry))

    assert staged(kept) == 2
    assert staged(kept, keep_unused_for=600) == 1


@proves("keep_tasks")
def test_keep_tasks_is_how_many_tasks_are_kept_in_all() -> None:
    async def kept(stage: Stage) -> int:
        stage.ec2.add_ended(20)
        stage.world.accounts["main"].regions = (REGION, "us-east-1")
        stage.world.accounts["main"].by_region["us-east-1"] = stage.ec2
        await stage.outcome(regions=[REGION])
        await asyncio.sleep(FORGET_EVERY)
        await stage.outcome(regions=["us-east-1"])
        await asyncio.sleep(FORGET_EVERY)
        await stage.outcome(regions=["us-east-1"])
        return len(list(stage.gateway.registry))

    assert staged(kept) == 2
    assert staged(kept, keep_tasks=30) == 1


@proves("remember_refusals_for")
def test_remember_refusals_for_is_how_long_a_refusal_is_believed() -> None:
    async def calls(stage: Stage) -> int:
        stage.ec2.denied = True
        for _ in range(3):
            await stage.outcome()
            await asyncio.sleep(9)
        return len(stage.ec2.calls)

    assert staged(calls) == 1
    assert staged(calls, remember_refusals_for=5) == 3


@proves("remember_lookups_for")
def test_remember_lookups_for_is_how_long_an_answer_to_one_caller_is_remembered() -> None:
    async def calls(stage: Stage) -> int:
        for _ in range(3):
            await stage.outcome(dry_run=True)
            await asyncio.sleep(19)
        return len(stage.ec2.calls)

    assert staged(calls) == 1
    assert staged(calls, remember_lookups_for=10) == 3


@proves("answer_cache_bytes")
def test_answer_cache_bytes_is_the_memory_for_answers() -> None:
    async def kept(stage: Stage) -> float:
        stage.ec2.add_ended(10)
        for _ in range(3):
            await stage.outcome()
        return float(stage.gateway.service._answers._kept.currsize)

    assert staged(kept) > 500
    assert staged(kept, answer_cache_bytes=100) == 0
    assert staged(kept, answer_cache_bytes=0) == 0


@proves(
    "limits.max_concurrent_calls",
    "limits.max_open_streams",
    "limits.default_calls_per_second",
    "limits.default_burst",
    "limits.default_concurrent_calls",
    "limits.default_open_streams",
)
def test_the_limits_are_how_much_is_let_in() -> None:
    async def let_in(stage: Stage) -> tuple[int, int]:
        """Of 40 calls of two callers, then of 40 streams."""
        boundary = stage.gateway.boundary
        quota = stage.gateway.gate._policy.permission(ANONYMOUS, "ListTargets").quota

        def entered(*, streaming: bool) -> Any:
            for number in range(40):
                with contextlib.suppress(Error):
                    yield boundary.limits.admit("ab"[number % 2], quota, streaming=streaming)

        return len([*entered(streaming=False)]), len([*entered(streaming=True)])

    assert staged(let_in) == (40, 40)
    assert staged(let_in, limits={"max_concurrent_calls": 5}) == (5, 40)
    assert staged(let_in, limits={"max_open_streams": 5}) == (40, 5)
    assert staged(let_in, limits={"default_calls_per_second": 3}) == (6, 0)
    assert staged(let_in, limits={"default_calls_per_second": 3, "default_burst": 2}) == (4, 0)
    assert staged(let_in, limits={"default_concurrent_calls": 3}) == (6, 40)
    assert staged(let_in, limits={"default_open_streams": 3}) == (40, 6)


@proves("limits.max_waiting_calls")
async def test_max_waiting_calls_is_how_many_may_arrive_in_the_same_moment(serve: Serve) -> None:
    async def refused(**limits: Any) -> int:
        gateway = await serve(limits=limits)
        await gateway.describe()
        headers = raw_http2.request(f"/{SERVICE.full_name}/DescribeStoreImageTasks")
        found = await asyncio.to_thread(raw_http2.statuses, gateway.address, headers, 300)
        assert set(found) <= {0, grpc.StatusCode.CANCELLED.value[0]}
        return len(found) - found.count(0)

    assert await refused() == 0
    assert await refused(max_waiting_calls=2) > 0


@proves("limits.max_connections")
async def test_max_connections_is_how_many_are_let_in(serve: Serve) -> None:
    gateway = await serve(limits={"max_connections": 2}, health_listen="127.0.0.1:0")

    def answers(address: str) -> bool:
        with raw_http2.connect(address) as peer:
            peer.sendall(raw_http2.hello())
            with contextlib.suppress(ConnectionError):
                return bool(peer.recv(1))
        return False

    # Its channel is the first.
    assert await gateway.describe()
    with raw_http2.connect(gateway.address) as held:
        held.sendall(raw_http2.hello())
        assert await asyncio.to_thread(held.recv, 1)
        assert not await asyncio.to_thread(answers, gateway.address)
        assert await asyncio.to_thread(answers, gateway.listening.health_address)


async def test_who_asks_for_health_leaves_connections_to_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HEALTH_CONNECTIONS", 1)
    gateway = await serve(health_listen="127.0.0.1:0")
    address = gateway.listening.health_address

    def second() -> bytes:
        with raw_http2.connect(address) as held, raw_http2.connect(address) as peer:
            held.sendall(raw_http2.hello())
            assert held.recv(1)
            with contextlib.suppress(ConnectionError):
                peer.sendall(raw_http2.hello())
                return peer.recv(1)
        return b""

    assert await asyncio.to_thread(second) == b""
    assert await gateway.describe()


def test_as_many_connections_are_let_in_as_there_are_descriptors_for() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "from imagetasks_server import descriptors; print(descriptors.left())"
    for limits, expected in (((64, 1024), 768), ((64, 100), 75), (before, before[1] * 3 // 4)):
        done = subprocess.run(
            [sys.executable, "-c", script],
            preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, limits),
            stdout=subprocess.PIPE,
            check=True,
        )
        assert int(done.stdout) == expected


@proves("limits.max_waiting_seconds")
async def test_max_waiting_seconds_is_what_grpc_is_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does then, `tests/ci/test_overload.py` shows: it takes a flood."""
    told: list[dict[str, object]] = []

    def server(options: Any) -> Any:
        told.append(dict(options))
        return new_server(options)

    monkeypatch.setattr(listening, "new_server", server)
    for limits, expected in (({}, 20), ({"max_waiting_seconds": 3}, 3)):
        await serve(limits=limits)
        assert told.pop()["grpc.server_max_unrequested_time_in_server"] == expected
    assert told == []


@proves("limits.max_arrival_seconds")
async def test_max_arrival_seconds_is_how_long_a_caller_may_send(serve: Serve, clock: VirtualClock) -> None:
    gateway = await serve(limits={"max_arrival_seconds": 3})
    call: Any = gateway.channel.stream_unary(f"/{SERVICE.full_name}/ListTargets")(timeout=PATIENCE)
    await eventually(lambda: gateway.boundary.limits.concurrent_calls)
    clock.advance(3)
    assert (await failure(call)).reason == "DEADLINE"


@proves("limits.max_stream_age")
def test_max_stream_age_is_how_long_a_watch_lasts() -> None:
    async def age(stage: Stage) -> float:
        began = stage.clock()
        events = stage.gateway.service.watch_store_image_tasks(pb.WatchStoreImageTasksRequest(), Call(1e12))
        assert [event.WhichOneof("event") async for event in events][-1] == "closing"
        return stage.clock() - began

    assert 2880 <= staged(age) <= 3600
    assert 80 <= staged(age, limits={"max_stream_age": 100}) <= 100


@proves("default_deadline")
async def test_default_deadline_ends_a_call_without_one(serve: Serve, world: FakeWorld) -> None:
    gateway = await serve(default_deadline=0.3)
    world.ec2("other").hang()
    refused = await failure(gateway.describe(None, accounts=["other"]))
    assert refused.reason == "DEADLINE"


async def test_a_wait_with_a_timeout_of_its_own_lasts_longer_than_a_call_without_a_deadline(
    serve: Serve, world: FakeWorld
) -> None:
    gateway = await serve(default_deadline=0.1)
    task = world.ec2("other").add()
    request = pb.WaitStoreImageTasksRequest(
        selector=pb.TaskSelector(accounts=["other"]), timeout=seconds(PATIENCE)
    )
    waiting = asyncio.ensure_future(gateway.stub.WaitStoreImageTasks(request))
    short = pb.WaitStoreImageTasksRequest(selector=request.selector)
    assert (
        await gateway.stub.WaitStoreImageTasks(short)
    ).reason == pb.WaitStoreImageTasksResponse.REASON_TIMEOUT
    assert not waiting.done()
    world.ec2("other").end(task)
    await gateway.describe(None, accounts=["other"], max_age=seconds(0))
    assert (await waiting).done


@proves("attempts", "connect_timeout")
@pytest.mark.parametrize(("attempts", "connect_timeout"), [(3, 5.0), (7, 1.5)])
async def test_clients_are_told_how_often_to_try_and_how_long_to_connect(
    attempts: int, connect_timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobodys")
    settings = config.Settings(attempts=attempts, connect_timeout=connect_timeout)
    with ThreadPoolExecutor(1) as builders:
        account = await asyncio.to_thread(Aws(settings, builders).open, settings.accounts[0])
        client = await account._session.client("ec2", REGION)
        assert client.meta.config.retries["total_max_attempts"] == attempts
        assert client.meta.config.connect_timeout == connect_timeout
        assert client.meta.config.read_timeout == settings.page_timeout
        await account.close()


@proves("listen")
async def test_listen_is_where_the_gateway_is(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    address = f"unix:{tmp_path_factory.mktemp('s')}/s"
    assert (await serve(listen=address)).address == address
    assert (await serve(listen="127.0.0.1:0")).address.startswith("127.0.0.1:")


@proves("tls_certificate", "tls_key", "tls_client_ca")
def test_tls_is_what_others_may_reach_and_needs_all_its_files(tmp_path: Path) -> None:
    """What the files do is for test_tls, and that they reach the server for test_health."""
    pem = tmp_path / "any.pem"
    pem.touch()
    anybody = {"accounts": ["*"]}
    assert not config.Settings(
        listen="0.0.0.0:0",
        tls_certificate=pem,
        tls_key=pem,
        anonymous=anybody,  # type: ignore[arg-type]
    ).insecure
    with pytest.raises(ValueError, match=r"^1 validation .*\n.*callers: '0\.0\.0\.0:0' can be reached"):
        config.Settings(listen="0.0.0.0:0", tls_certificate=pem, tls_key=pem)
    for missing in ({"tls_certificate": pem}, {"tls_key": pem}, {"tls_client_ca": pem}):
        with pytest.raises(ValueError, match=next(iter(missing))):
            config.Settings(**missing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tls_key"):
        config.Settings(tls_certificate=pem, tls_key=tmp_path / "none.pem")


@proves("health_listen")
async def test_health_listen_is_where_health_alone_is_answered(serve: Serve) -> None:
    assert (await serve()).listening.health_server is None
    assert (await serve(health_listen="127.0.0.1:0")).listening.health_address.startswith("127.0.0.1:")
    taken = (await serve()).address
    with pytest.raises(config.ConfigError, match=r"^health_listen: cannot listen on"):
        await serve(health_listen=taken)


@proves("check_credentials_every")
def test_check_credentials_every_is_the_time_between_two_looks() -> None:
    """That it reaches them is for test_process."""
    looks: list[float] = []

    async def looked_for_100_seconds(clock: VirtualClock) -> None:
        class Asked:
            async def identity(self) -> Identity:
                looks.append(clock())
                return Identity("aws", "123456789012")

        accounts: Any = {"main": Asked()}
        looking = asyncio.create_task(Credentials(accounts, no_roster, every=9.5).look_after(Health()))
        await asyncio.sleep(100)
        looking.cancel()

    no_roster: Any = None
    run(looked_for_100_seconds)
    assert len(looks) == 10


@proves("insecure")
def test_insecure_is_needed_where_others_can_reach_it() -> None:
    with pytest.raises(ValueError, match="insecure"):
        config.Settings(listen="0.0.0.0:0")
    assert config.Settings(listen="0.0.0.0:0", insecure=True)


@proves("metrics_listen")
async def test_metrics_listen_is_where_prometheus_finds_metrics(gateway: Gateway) -> None:
    async with measured(config.Settings(), gateway.gateway) as address:
        assert address == ""
    async with measured(config.Settings(metrics_listen="localhost:0"), gateway.gateway) as address:
        assert address.startswith("localhost:")
    for wrong in ("9464", ":9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(ValueError, match="metrics_listen"):
            config.Settings(metrics_listen=wrong)


@proves("metrics_insecure")
def test_metrics_insecure_is_needed_where_others_can_reach_them() -> None:
    with pytest.raises(ValueError, match="metrics_insecure"):
        config.Settings(metrics_listen="0.0.0.0:9464")
    assert config.Settings(metrics_listen="0.0.0.0:9464", metrics_insecure=True)


@proves("tracing")
async def test_tracing_is_whether_calls_are_traced() -> None:
    async with traced(config.Settings()) as tracer:
        assert tracer is None
    async with traced(config.Settings(tracing=True)) as tracer:
        assert tracer is not None


@proves("reflection")
@pytest.mark.parametrize(
    ("settings", "reflected"),
    [
        ({}, True),
        ({"reflection": False}, False),
        ({"listen": "0.0.0.0:0", "insecure": True}, False),
        ({"listen": "0.0.0.0:0", "insecure": True, "reflection": True}, True),
    ],
)
async def test_reflection_is_served_where_it_is_meant(
    world: FakeWorld,
    clock: VirtualClock,
    settings: dict[str, Any],
    reflected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enabled: list[Any] = []
    monkeypatch.setattr(reflection, "enable_server_reflection", lambda *names: enabled.append(names))
    configured = config.Settings(**{"accounts": [{"name": "main"}], "listen": "127.0.0.1:0", **settings})
    gateway = assemble(configured, world.accounts, clock)
    listening = await listen(configured, gateway)
    await listening.start()
    await listening.drain(gateway, 1.0)
    assert bool(enabled) is reflected


@proves("log_level", "log_json")
def test_the_log_is_rendered_and_kept_short_as_configured(capsys: pytest.CaptureFixture[str]) -> None:
    for level, json_lines, expected in (
        ("info", True, ['{"fine":true', "said"]),
        ("info", False, ["fine", "said"]),
        ("error", True, []),
    ):
        with contextlib.ExitStack() as stack:
            stack.callback(structlog.reset_defaults)
            configure_log(level, json_lines=json_lines)
            structlog.get_logger().info("said", fine=True)
        written = capsys.readouterr().err
        assert bool(written) is bool(expected)
        assert written.startswith("{") is (json_lines and bool(expected))
        assert all(part in written for part in expected)


@proves("drain_seconds")
async def test_drain_seconds_is_what_calls_under_way_get(serve: Serve) -> None:
    """That it reaches `_drain` is for test_process."""
    gateway = await serve()
    stub: Any = health_pb2_grpc.HealthStub(gateway.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    await watch.read()
    draining = asyncio.create_task(gateway.listening.drain(gateway.gateway, 600))
    # Told, and not ended.
    assert (await watch.read()).status == NOT_SERVING
    assert not draining.done()
    watch.cancel()
    await draining
