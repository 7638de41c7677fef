"""What is let in, and what a refusal says: on random histories against the plainest counting."""

import asyncio
import contextlib
from collections import deque

import pytest
from callers_stage import AUDIENCE, ISSUER, METHODS, Issuer, entry, refused
from fake_ec2 import FakeWorld
from gateway_stage import PATIENCE, Failure, Serve, eventually, failure
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

import raw_http2
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import jwks, listening
from imagetasks_server import limits as limits_module
from imagetasks_server.contract import SERVICE
from imagetasks_server.errors import Exhausted
from imagetasks_server.limits import Limits, Place, Quota
from imagetasks_server.selection import MAX_FILTER_VALUE_BYTES, MAX_FILTERS, MAX_SELECTED_IMAGES
from imagetasks_server.service import MAX_ACCOUNTS, MAX_REGIONS
from imagetasks_server.tokens import MAX_CHARS

AMPLE = 10**9


class Hall:
    """Limits, their time, and who is in."""

    def __init__(self, *, calls: int = AMPLE, streams: int = AMPLE) -> None:
        self.now = 0.0
        self.limits = Limits(
            lambda: self.now, lambda: 0.5, max_concurrent_calls=calls, max_open_streams=streams
        )
        self.inside: deque[Place] = deque()

    def comes(self, quota: Quota, caller: str = "anybody", *, streaming: bool = False) -> Exhausted | None:
        """The refusal, if it is refused."""
        try:
            self.inside.append(self.limits.admit(caller, quota, streaming=streaming))
        except Exhausted as refusal:
            return refusal
        return None

    def leaves(self) -> None:
        """Whoever has been in for longest."""
        if self.inside:
            self.inside.popleft().leave()


@given(
    rate=st.sampled_from([0.1, 1.0, 3.0, 7.0]),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 30), max_size=60),
)
def test_a_caller_never_begins_more_than_its_rate_and_is_told_exactly_when_to_come_back(
    rate: float, burst: int, pauses: list[float]
) -> None:
    hall = Hall()
    quota = Quota(calls_per_second=rate, burst=burst)
    begun: list[float] = []
    for pause in pauses:
        hall.now += pause
        refusal = hall.comes(quota)
        if refusal is not None:
            assert refusal.reason == "RATE_LIMITED"
            assert refusal.retry_after is not None
            # A moment earlier would be refused again; then it is let in.
            told = hall.now + refusal.retry_after
            hall.now = told - 1e-4
            assert hall.comes(quota) is not None
            hall.now = told
            assert hall.comes(quota) is None
        begun.append(hall.now)
        for number, first in enumerate(begun):
            assert len(begun) - number <= burst + rate * (hall.now - first) + 1e-3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=200))
def test_no_more_are_in_than_may_be_and_nobody_is_refused_without_need(
    history: list[tuple[str, bool, bool]],
) -> None:
    hall = Hall(calls=5, streams=7)
    quota = Quota(concurrent_calls=2, open_streams=4)
    inside: deque[tuple[str, bool]] = deque()
    for caller, streaming, comes in history:
        if not comes:
            hall.leaves()
            with contextlib.suppress(IndexError):
                inside.popleft()
            continue
        own = inside.count((caller, streaming))
        all_ = sum(kind is streaming for _, kind in inside)
        expected = None
        if own == (4 if streaming else 2):
            expected = "TOO_MANY_STREAMS" if streaming else "TOO_MANY_CALLS"
        elif all_ == (7 if streaming else 5):
            expected = "OVERLOADED"
        refusal = hall.comes(quota, caller, streaming=streaming)
        assert (refusal and refusal.reason) == expected
        if refusal is None:
            inside.append((caller, streaming))
        else:
            assert refusal.retry_after == (10 if streaming else 1)
    assert hall.limits.open_streams == sum(streaming for _, streaming in inside)
    assert hall.limits.concurrent_calls == len(inside) - hall.limits.open_streams


def test_who_is_refused_a_place_keeps_its_rate() -> None:
    hall = Hall()
    quota = Quota(calls_per_second=0.001, burst=2, concurrent_calls=1)
    assert hall.comes(quota) is None
    for _ in range(10):
        refusal = hall.comes(quota)
        assert refusal is not None
        assert refusal.reason == "TOO_MANY_CALLS"
    hall.leaves()
    assert hall.comes(quota) is None


def test_a_rate_without_a_burst_lets_one_seconds_worth_in_at_once() -> None:
    for rate, expected in ((5.0, 5), (0.2, 1)):
        hall = Hall()
        accepted = [hall.comes(Quota(calls_per_second=rate)) is None for _ in range(20)]
        assert sum(accepted) == expected


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 50))
def test_callers_who_have_left_are_forgotten_whatever_names_come(burst: int, staying: int) -> None:
    hall = Hall()
    quota = Quota(calls_per_second=10.0, burst=burst)
    for number in range(staying):
        assert hall.comes(quota, f"stays {number}") is None
    for number in range(5000):
        hall.now += 0.01
        assert hall.comes(quota, f"comes {number}") is None
        hall.inside.pop().leave()
        # Ten come while one's bucket fills again; the rest have not been looked at since.
        assert hall.limits.callers <= 2 * staying + 40
    assert hall.limits.callers >= staying


def told(refused: Failure) -> float:
    """The seconds of a refusal's RetryInfo."""
    (info,) = refused.details(error_details_pb2.RetryInfo)
    return float(info.retry_delay.ToMicroseconds() / 1e6)


async def test_a_caller_above_its_rate_is_refused_by_every_method(serve: Serve) -> None:
    gateway = await serve(limits={"default_calls_per_second": 0.01, "default_burst": 1})
    await gateway.describe()
    for call in (
        gateway.describe(),
        gateway.stream(),
        gateway.stub.ListTargets(pb.ListTargetsRequest(), timeout=PATIENCE),
        gateway.stub.WaitStoreImageTasks(pb.WaitStoreImageTasksRequest(), timeout=PATIENCE),
        gateway.stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest(), timeout=PATIENCE).read(),
    ):
        refused = await failure(call)
        assert refused.reason == "RATE_LIMITED"
        assert 90 < told(refused) <= 100


async def test_watches_and_waits_take_a_streams_place_and_give_it_back(
    serve: Serve, world: FakeWorld
) -> None:
    world.ec2().add()
    gateway = await serve(limits={"default_open_streams": 2})
    watch = gateway.stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest(), timeout=PATIENCE)
    await watch.read()
    wait = gateway.stub.WaitStoreImageTasks(pb.WaitStoreImageTasksRequest(), timeout=PATIENCE)
    limits = gateway.boundary.limits
    await eventually(lambda: limits.open_streams == 2)
    refused = await failure(gateway.stream())
    assert refused.reason == "TOO_MANY_STREAMS"
    assert 5 <= told(refused) <= 15
    # Whoever describes needs no stream.
    await gateway.describe()
    for call in (watch, wait):
        call.cancel()
    await eventually(lambda: limits.open_streams == 0)
    await gateway.stream()


async def test_a_call_that_fails_or_is_left_gives_its_place_back(serve: Serve, world: FakeWorld) -> None:
    gateway = await serve(limits={"max_concurrent_calls": 1, "default_concurrent_calls": 2})
    assert (await gateway.refused(accounts=["nobody"])).reason == "UNKNOWN_ACCOUNT"
    hold = world.ec2().hang()
    hanging = gateway.stub.DescribeStoreImageTasks(pb.DescribeStoreImageTasksRequest(), timeout=PATIENCE)
    await hold.reached()
    refused = await gateway.refused()
    assert refused.reason == "OVERLOADED"
    assert 0.5 <= told(refused) <= 1.5
    hanging.cancel()
    await eventually(lambda: gateway.boundary.limits.concurrent_calls == 0)
    hold.release()
    await gateway.describe()


@pytest.mark.parametrize("asked_before", [False, True], ids=["built", "kept"])
async def test_an_answer_that_is_not_read_holds_its_place(
    serve: Serve, world: FakeWorld, *, asked_before: bool
) -> None:
    """So that they cannot pile up: gRPC keeps each until it is read, or nobody is there any more."""
    world.ec2().add_ended(100)
    gateway = await serve(limits={"max_concurrent_calls": 6})
    limits = gateway.boundary.limits
    if asked_before:
        # Word for word: what is told then is kept.
        await gateway.describe()
    headers = raw_http2.request(f"/{SERVICE.full_name}/DescribeStoreImageTasks")
    with raw_http2.connect(gateway.address) as peer:
        calls = b"".join(raw_http2.call(2 * number + 1, headers) for number in range(3))
        peer.sendall(raw_http2.PREFACE + raw_http2.settings(initial_window_size=0) + calls)
        await eventually(lambda: limits.concurrent_calls == 3)
        # Given, but not sent.
        await gateway.boundary.idle()
        # Half of all places, if nothing else is said: the others are for others.
        assert (await gateway.refused()).reason == "TOO_MANY_CALLS"
        # One is read.
        window = raw_http2.LARGEST_WINDOW.to_bytes(4, "big")
        peer.sendall(raw_http2.frame(raw_http2.WINDOW_UPDATE, 0, 1, window))
        await eventually(lambda: limits.concurrent_calls == 2)
        await gateway.describe()
    # Nobody is there any more.
    await eventually(lambda: limits.concurrent_calls == 0)


def test_calls_that_wait_for_keys_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MOST_UNDECIDED", 3)
    limits = Hall().limits
    with limits.undecided(), limits.undecided():
        with limits.undecided():
            with pytest.raises(Exhausted) as refused, limits.undecided():
                pass
            assert refused.value.reason == "OVERLOADED"
            assert refused.value.retry_after == 1.0
        with limits.undecided():
            pass


async def test_a_call_that_waits_for_keys_above_the_bound_is_told_when_to_come_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "MOST_UNDECIDED", 2)
    arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def hangs() -> bytes:
        arrived.release()
        await go_on.wait()
        raise ValueError("never mind")

    monkeypatch.setattr(jwks, "_of", lambda _: hangs)
    gateway = await serve(
        jwt={"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://issuer.example/keys"},
        callers=[entry("people", claims={"sub": "alice"})],
    )
    token = Issuer().token()
    waiting = [asyncio.ensure_future(refused(gateway.channel, METHODS[0], token)) for _ in range(2)]
    await arrived.acquire()
    await eventually(lambda: gateway.boundary.limits._undecided == 2)
    third = await refused(gateway.channel, METHODS[0], token)
    assert (third.reason, 0 < told(third) < 2) == ("OVERLOADED", True)
    go_on.set()
    assert {each.reason for each in await asyncio.gather(*waiting)} == {"KEYS_UNAVAILABLE"}


async def test_the_largest_legal_request_is_taken_and_little_more(serve: Serve) -> None:
    gateway = await serve()
    largest = pb.TaskSelector(
        image_ids=[f"ami-{number:017x}" for number in range(MAX_SELECTED_IMAGES)],
        filters=[
            pb.Filter(name="task-state", values=["x" * MAX_FILTER_VALUE_BYTES] * 4)
            for _ in range(MAX_FILTERS)
        ],
        accounts=["a" * 63] * MAX_ACCOUNTS,
        regions=["govt-northwestern-northwestern-northwestern-12"] * MAX_REGIONS,
    )
    request = pb.WatchStoreImageTasksRequest(selector=largest)
    # With the longest token it is refused for the token alone; without, for an account that is not there.
    assert (await failure(gateway.stub.WatchStoreImageTasks(request).read())).reason == "UNKNOWN_ACCOUNT"
    request.resume_token = "x" * MAX_CHARS
    taken = dict(listening.SERVER_OPTIONS)["grpc.max_receive_message_length"]
    assert 0.9 * taken < request.ByteSize() < taken
    refused = await failure(gateway.stub.WatchStoreImageTasks(request).read())
    assert refused.reason == "RESUME_TOKEN_INVALID"


def test_a_debt_at_a_low_rate_is_none_at_a_high_one() -> None:
    now = [1000.0]
    limits = Limits(lambda: now[0], lambda: 0.5, max_concurrent_calls=10, max_open_streams=10)
    slow, fast = Quota(calls_per_second=0.01), Quota(calls_per_second=1000)
    limits.admit("a", slow, streaming=False)
    with pytest.raises(Exhausted):
        limits.admit("a", slow, streaming=False)
    with pytest.raises(Exhausted) as refused:
        limits.admit("a", fast, streaming=False)
    assert refused.value.retry_after == pytest.approx(0.001)
    for _ in range(1000):
        now[0] += 0.001
        limits.admit("a", fast, streaming=False).leave()
