"""What is answered or let in from memory, beside what the long way says at the same moment."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from callers_stage import REVOKED, TOKEN, UNKNOWN, Issuer, entry, known, sha256
from fake_ec2 import FakeWorld, aws_error
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import VirtualClock, run
from virtual_stage import AMPLE, REGIONS

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.access import Access
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.config import Settings
from imagetasks_server.errors import Error
from imagetasks_server.gate import Decision, Gate
from imagetasks_server.permission import EVERYTHING, Grant, Permission
from imagetasks_server.repeats import KEPT, LONGEST_BYTES, RENEWED_EVERY
from imagetasks_server.service import Call
from imagetasks_server.tally import Tally

Describe = pb.DescribeStoreImageTasksRequest
METHOD = "DescribeStoreImageTasks"

QUESTIONS = (
    Describe(),
    Describe(max_age=Duration(seconds=60)),
    Describe(max_age=Duration(nanos=300_000_000)),
    Describe(max_age=Duration()),
    Describe(regions=[REGIONS[0]]),
    Describe(max_results=2),
    Describe(filters=[pb.Filter(name="task-state", values=["InProgress"])]),
    Describe(accounts=["main", "other"], forbid_stale=True),
    Describe(regions=["ap-one-1"]),
    Describe(dry_run=True),
)
PERMISSIONS = (EVERYTHING, Permission("less", (Grant(regions=("eu-*",)),)))


class Repeated:
    """A gateway that is asked the same few questions again and again."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.world = FakeWorld(clock, {"main": REGIONS, "other": REGIONS[:1]})
        chosen = Settings(
            accounts=[{"name": "main"}, {"name": "other"}],
            budget=AMPLE,
            default_max_age=5.0,
            region_expiry=30.0,
            keep_unused_for=60.0,
        )
        self.gateway: Gateway = assemble(chosen, self.world.accounts, clock)
        self.pages: list[bytes] = []

    async def asks(self, number: int, whose: int) -> None:
        """The second time the answer may be from what is known, the third from memory."""
        message = QUESTIONS[number].SerializeToString()
        for each in (message, message, message, *self.pages[-2:]):
            answer = await self.ask(each, PERMISSIONS[whose])
            if answer is not None and answer.next_token:
                more = Describe(max_results=2, next_token=answer.next_token)
                self.pages.append(more.SerializeToString())

    async def waits(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def changes(self, number: int) -> None:
        self.world.ec2("main", REGIONS[number]).add()

    async def fails(self) -> None:
        self.world.ec2("other", REGIONS[0]).fail(aws_error("InternalError", status=500))

    async def has_accounts(self, *names: str) -> None:
        accounts = {name: self.world.accounts[name] for name in names}
        self.gateway.targets.replace(accounts, dict.fromkeys(names, ()), {})

    async def ask(self, message: bytes, permission: Permission) -> pb.DescribeStoreImageTasksResponse | None:
        """What the long way says; what comes from memory has to be the same, and counted the same."""
        service, tally, again = self.gateway.service, Tally(), Tally()
        remembered = service.again[METHOD](message, permission, again)
        call = Call(self.clock() + 30, "somebody", tally, Access(permission), message)
        try:
            answer = await service.describe_store_image_tasks(Describe.FromString(message), call)
        except Error:
            assert remembered is None
            return None
        if remembered is not None:
            assert remembered == answer
            assert dataclasses.asdict(again) == dataclasses.asdict(tally)
        return pb.DescribeStoreImageTasksResponse.FromString(answer)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("asks"), st.integers(0, len(QUESTIONS) - 1), st.integers(0, 1)),
        st.tuples(st.just("asks"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("asks"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("waits"), st.sampled_from([0.0, 0.1, 0.4])),
        st.tuples(st.just("waits"), st.sampled_from([1.0, 4.0, 40.0, 300.0])),
        st.tuples(st.just("changes"), st.integers(0, 1)),
        st.tuples(st.just("fails")),
        st.sampled_from([("has_accounts", "main"), ("has_accounts", "main", "other")]),
    ),
    min_size=30,
    max_size=90,
)


@given(steps=STEPS)
@settings(max_examples=150)
def test_what_comes_from_memory_is_what_the_long_way_says(steps: list[tuple[Any, ...]]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        repeated = Repeated(clock)
        for region in REGIONS:
            for age in range(3):
                repeated.world.ec2("main", region).add(age=age)
        for name, *how in steps:
            await getattr(repeated, name)(*how)
        await repeated.gateway.close()

    run(scenario)


def test_a_question_asked_again_needs_no_waiting_until_something_behind_it_changes() -> None:
    async def scenario(clock: VirtualClock) -> None:
        repeated = Repeated(clock)
        message = QUESTIONS[1].SerializeToString()
        again = repeated.gateway.service.again[METHOD]

        def at_once() -> bool:
            return again(message, EVERYTHING, Tally()) is not None

        assert not at_once()
        # The first answer was read for it, and says so; the second is from what is known.
        await repeated.ask(message, EVERYTHING)
        assert not at_once()
        await repeated.ask(message, EVERYTHING)
        assert at_once()
        assert again(message, PERMISSIONS[1], Tally()) is None
        assert again(message + b"\x00", EVERYTHING, Tally()) is None
        # Once in a while the long way: targets count as used, lists of Regions are renewed.
        await asyncio.sleep(RENEWED_EVERY)
        assert not at_once()
        await repeated.ask(message, EVERYTHING)
        assert at_once()
        repeated.world.ec2("main", REGIONS[0]).add()
        assert at_once()
        await repeated.ask(Describe(max_age=Duration(), regions=[REGIONS[0]]).SerializeToString(), EVERYTHING)
        assert not at_once()
        await repeated.ask(message, EVERYTHING)
        assert at_once()
        await repeated.has_accounts("main", "other")
        assert not at_once()
        await repeated.gateway.close()

    run(scenario)


def test_what_is_remembered_is_bounded() -> None:
    async def scenario(clock: VirtualClock) -> None:
        repeated = Repeated(clock)
        service = repeated.gateway.service
        long = Describe(image_ids=[f"ami-{number:017x}" for number in range(200)]).SerializeToString()
        assert len(long) > LONGEST_BYTES
        for number in range(KEPT + 1):
            message = Describe(
                max_age=Duration(seconds=60 + number), regions=[REGIONS[0]]
            ).SerializeToString()
            await repeated.ask(message, EVERYTHING)
        await repeated.ask(message, EVERYTHING)
        assert len(service._repeats._kept) <= KEPT
        assert service.again[METHOD](message, EVERYTHING, Tally()) is not None
        for _ in range(3):
            await repeated.ask(long, EVERYTHING)
        assert service.again[METHOD](long, EVERYTHING, Tally()) is None
        await repeated.gateway.close()

    run(scenario)


def callers(*, revoked: bool, other: bool) -> list[dict[str, Any]]:
    return [
        entry("dashboard", token_sha256=[sha256(each) for each in (TOKEN, *(() if revoked else (REVOKED,)))]),
        entry("people", claims={"sub": "alice"}, accounts=["other"] if other else ["main"]),
    ]


GATE_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("comes"), st.integers(0, 5)),
        st.tuples(st.just("comes"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 30.0, 400.0])),
        st.tuples(st.just("configure"), st.booleans(), st.booleans()),
        st.tuples(st.just("publish"), st.sampled_from([(0,), (1,), (0, 1)])),
    ),
    min_size=10,
    max_size=50,
)


@given(steps=GATE_STEPS)
@settings(max_examples=150)
def test_whom_the_gate_knows_it_would_let_in_the_long_way_just_so(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    issuers = Issuer("one"), Issuer("two")

    def configured(*, revoked: bool, other: bool) -> Settings:
        return Settings(**known(path, issuers[0]) | {"callers": callers(revoked=revoked, other=other)})

    async def scenario(clock: VirtualClock) -> None:
        gate = Gate(configured(revoked=False, other=False), clock)
        tokens = [TOKEN, REVOKED, issuers[0].token(sub="alice", lifetime=60), UNKNOWN]
        tokens += [issuers[1].token(sub="alice", lifetime=600), issuers[0].token(sub="mallory")]
        for step in steps:
            match step:
                case "comes", number:
                    metadata = (("authorization", f"Bearer {tokens[number]}"),)
                    remembered = gate.known(metadata, METHOD)
                    decided = await decision(gate, metadata)
                    assert remembered is None or remembered == decided
                    # What was just decided upon a token is known, and by the same permission.
                    again = gate.known(metadata, METHOD)
                    assert again is None if decided is None else again is None or again == decided
                    if decided is not None and number < 2:
                        assert again is not None
                        assert again.permission is decided.permission
                case "wait", seconds:
                    await asyncio.sleep(seconds)
                case "configure", revoked, other:
                    gate.replace(configured(revoked=revoked, other=other))
                case "publish", which:
                    first, *others = (issuers[each] for each in which)
                    path.write_text(first.jwks(*others))
        await gate.close()

    run(scenario)


async def decision(gate: Gate, metadata: Sequence[tuple[str, str]]) -> Decision | None:
    try:
        return await gate.decided(metadata, {}, METHOD)
    except Error:
        return None


def test_two_tokens_are_never_known(tmp_path: Path) -> None:
    async def scenario(clock: VirtualClock) -> None:
        gate = Gate(Settings(**known(tmp_path / "jwks.json", Issuer())), clock)
        one = ("authorization", f"Bearer {TOKEN}")
        assert await decision(gate, (one,)) is not None
        assert gate.known((one,), METHOD) is not None
        assert gate.known((one,), "ListTargets") is None
        assert gate.known((one, one), METHOD) is None
        assert gate.known((("authorization", f"bearer {TOKEN}"),), METHOD) is None
        assert gate.known((), METHOD) is None
        await gate.close()

    run(scenario)
