"""When the gateway says that it serves, and when not."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld, aws_error
from gateway_stage import PATIENCE, Gateway, Serve, eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc
from virtual import VirtualClock, run

from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.errors import Error, FailedPrecondition, PermissionDenied, Unavailable
from imagetasks_server.health import ALIVE, NAMES, NOT_SERVING, SERVING, Credentials, Health
from imagetasks_server.roster import Roster
from imagetasks_server.targets import Identity

NONE = FailedPrecondition("AWS_CREDENTIALS_UNAVAILABLE", "none")
EXPIRED = Unavailable("AWS_CREDENTIALS_EXPIRED", "expired")
ROLE_DENIED = PermissionDenied("AWS_UNAUTHORIZED_OPERATION", "not this role")
UNREACHABLE = Unavailable("AWS_UNREACHABLE", "no way there")


class Account:
    """Says who it is, or why it cannot."""

    def __init__(self, error: Error | None = None, *, takes: float = 0.0) -> None:
        self.error = error
        self.asked = 0
        self._takes = takes

    async def identity(self) -> Identity:
        self.asked += 1
        await asyncio.sleep(self._takes)
        if self.error is not None:
            raise self.error
        return Identity("aws", "123456789012")

    async def enabled_regions(self) -> Sequence[str]:
        return ()


async def untold(_: Sequence[AccountSettings], __: Mapping[str, Error]) -> None: ...


def credentials(*accounts: Account, every: float = 30.0) -> Credentials:
    named = {str(number): account for number, account in enumerate(accounts)}
    return Credentials(named, Roster([], [], untold), every=every)


class TestCredentials:
    """Whether any account has some."""

    @pytest.mark.parametrize(
        ("errors", "well"),
        [
            ([None], True),
            ([NONE], False),
            ([EXPIRED], False),
            ([ROLE_DENIED], False),
            ([NONE, EXPIRED, ROLE_DENIED], False),
            ([NONE, ROLE_DENIED, None], True),
            # Nobody knows: it stays as it was.
            ([UNREACHABLE], True),
            ([NONE, UNREACHABLE], True),
            ([NONE] * 40, False),
            ([*[NONE] * 40, None], True),
        ],
    )
    def test_one_account_with_credentials_is_enough(self, errors: list[Error | None], well: bool) -> None:
        async def scenario(_: VirtualClock) -> None:
            assert await credentials(*map(Account, errors)).look() is well

        run(scenario)

    def test_while_aws_does_not_tell_it_stays_as_it_was(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            account = Account(NONE)
            looked = credentials(account)
            assert not await looked.look()
            account.error = UNREACHABLE
            assert not await looked.look()
            account.error = None
            assert await looked.look()
            account.error = UNREACHABLE
            assert await looked.look()

        run(scenario)

    def test_the_first_answer_counts_and_nobody_else_is_waited_for(self) -> None:
        async def scenario(clock: VirtualClock) -> None:
            began = clock()
            assert await credentials(Account(takes=3600), Account(takes=1), Account(takes=3600)).look()
            assert clock() - began == 1

        run(scenario)

    def test_once_one_has_answered_no_more_are_asked(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            accounts = [Account() for _ in range(100)]
            assert await credentials(*accounts).look()
            assert sum(each.asked for each in accounts) <= 8

        run(scenario)

    def test_organizations_that_cannot_be_listed_for_want_of_credentials_are_no_accounts(self) -> None:
        async def scenario(_: VirtualClock) -> None:
            for errors, well in (({"a": NONE}, False), ({"a": NONE, "b": UNREACHABLE}, True)):
                roster = Roster([], [], untold)
                roster._unlisted = dict(errors)
                assert await Credentials({}, roster, every=1).look() is well

        run(scenario)

    def test_the_health_follows_them_and_the_change_is_logged_once(self, log: list[Any]) -> None:
        begun: list[int] = []

        async def scenario(clock: VirtualClock) -> None:
            health, account = Health(), Account()
            began = clock()
            looked = credentials(account).look_after(health, lambda: begun.append(round(clock() - began)))
            looking = asyncio.create_task(looked)
            told = []
            for error in (None, NONE, NONE, None):
                account.error = error
                await asyncio.sleep(31)
                told.append(health._servicer._server_status[""])
            looking.cancel()
            assert told == [SERVING, NOT_SERVING, NOT_SERVING, SERVING]

        run(scenario)
        # It is said each time that it begins, and not while it goes on.
        assert begun == [30, 95]
        assert [entry["event"] for entry in log] == [
            "no account has credentials",
            "an account has credentials again",
        ]


async def asked(channel: grpc.aio.Channel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
    return int(answer.status)


class TestService:
    """What the service answers."""

    async def test_a_region_that_fails_is_no_matter_of_health(
        self, gateway: Gateway, world: FakeWorld
    ) -> None:
        world.ec2().fail(aws_error("InternalError", status=500))
        await gateway.describe()
        assert [await asked(gateway.channel, name) for name in NAMES] == [SERVING, SERVING]

    async def test_it_is_alive_whatever_its_health(self, gateway: Gateway) -> None:
        for well in (False, True):
            await gateway.listening.health.serve(well=well)
            assert gateway.listening.health.is_serving is well
            assert await asked(gateway.channel, "") == (SERVING if well else NOT_SERVING)
            assert await asked(gateway.channel, ALIVE) == SERVING

    async def test_a_gateway_that_drains_does_not_serve_again(self, gateway: Gateway) -> None:
        await gateway.listening.health.drain()
        await gateway.listening.health.serve(well=True)
        assert await asked(gateway.channel, "") == NOT_SERVING
        assert await asked(gateway.channel, ALIVE) == SERVING

    async def test_one_who_watches_and_does_not_read_holds_up_no_check(
        self, gateway: Gateway, clock: VirtualClock
    ) -> None:
        stub: Any = health_pb2_grpc.HealthStub(gateway.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        # What the library holds while it writes to that one.
        async with gateway.listening.health._servicer._server_watchers[""]:
            draining = asyncio.create_task(gateway.listening.health.drain())
            await asyncio.sleep(0)
            assert await asked(gateway.channel, "") == NOT_SERVING
            assert not draining.done()
            clock.advance(1)
            await draining
        watch.cancel()

    async def test_a_listener_for_health_alone_answers_nothing_else(self, serve: Serve) -> None:
        gateway = await serve(health_listen="127.0.0.1:0")
        async with grpc.aio.insecure_channel(gateway.listening.health_address) as channel:
            assert [await asked(channel, name) for name in (*NAMES, ALIVE)] == [SERVING] * 3
            await gateway.listening.health.serve(well=False)
            assert await asked(channel, "") == NOT_SERVING
            method = channel.unary_unary("/imagetasks.v1.StoreImageTaskService/ListTargets")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"", timeout=PATIENCE)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_watchers_of_health_are_few_and_their_names_short(gateway: Gateway) -> None:
    stub: Any = health_pb2_grpc.HealthStub(gateway.channel)
    long = stub.Watch(health_pb2.HealthCheckRequest(service="x" * 10_000), timeout=PATIENCE)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await long.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(200)]
    for each in watches:
        assert (await each.read()).status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Whoever asks once is always answered; who leaves makes room.
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)).status == SERVING
    for each in watches:
        each.cancel()
    await eventually(lambda: gateway.listening.health._servicer._watchers == 0)
