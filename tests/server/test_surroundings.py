"""What else is served: targets, health, reflection, methods to come; and what a fault inside looks like."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld, aws_error, image
from gateway_stage import PATIENCE, Gateway, Serve, eventually, failure, outcomes, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.contract import SERVICE
from imagetasks_server.health import NOT_SERVING, SERVING
from processes import gateway as gateway_process

# INTERNAL where grpc.aio's client still writes to a call that was refused meanwhile.
NOT_THERE = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)


async def list_targets(gateway: Gateway, **request: Any) -> pb.ListTargetsResponse:
    response: pb.ListTargetsResponse = await gateway.stub.ListTargets(
        pb.ListTargetsRequest(**request), timeout=PATIENCE
    )
    return response


class TestListTargets:
    """How the gateway stands with each target."""

    async def test_before_anything_was_read(self, serve: Serve) -> None:
        gateway = await serve(budget={"capacity": 50, "refill": 0.5, "reserve": 0.2, "initial": 5})
        response = await list_targets(gateway)
        assert response.server_version
        assert [(each.target.account, each.target.region) for each in response.targets] == [
            ("main", "eu-central-1"),
            ("main", "us-east-1"),
            ("other", "eu-central-1"),
        ]
        state = response.targets[0]
        assert state.target.account_id == "123456789012"
        assert (state.budget.capacity, state.budget.refill_per_second) == (40, 0.4)
        assert 5 <= state.budget.available < 5.5
        assert not state.HasField("read_time")
        assert not state.HasField("last_error")
        assert (state.task_count, state.in_progress_count) == (0, 0)
        assert state.region_source == pb.REGION_SOURCE_DISCOVERED
        assert gateway.world.calls == []

    async def test_after_a_read(self, gateway: Gateway) -> None:
        gateway.world.ec2().add()
        gateway.world.ec2().add_ended(3)
        described = await gateway.describe()
        state = (await list_targets(gateway)).targets[0]
        assert (state.task_count, state.in_progress_count) == (4, 1)
        assert state.read_time == described.target_outcomes[0].read_time

    async def test_after_a_failed_read_and_a_good_one(self, gateway: Gateway, clock: VirtualClock) -> None:
        gateway.world.ec2().fail(aws_error("InternalError", status=500))
        await gateway.describe()
        state = (await list_targets(gateway)).targets[0]
        assert state.last_error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert not state.HasField("read_time")
        clock.advance(10)
        await gateway.describe()
        state = (await list_targets(gateway)).targets[0]
        assert not state.HasField("last_error")
        assert state.HasField("read_time")

    async def test_reads_are_paid(self, serve: Serve, clock: VirtualClock) -> None:
        gateway = await serve(budget={"capacity": 50, "refill": 0.001, "initial": 10})
        for _ in range(3):
            await gateway.describe()
            clock.advance(6)
        state = (await list_targets(gateway)).targets[0]
        assert 7 <= state.budget.available < 7.5

    async def test_accounts_and_regions_choose(self, gateway: Gateway) -> None:
        response = await list_targets(gateway, accounts=["main"], regions=["us-east-1"])
        assert [(each.target.account, each.target.region) for each in response.targets] == [
            ("main", "us-east-1")
        ]

    async def test_an_account_that_cannot_be_used_has_a_state_without_a_region(
        self, gateway: Gateway
    ) -> None:
        gateway.world.accounts["main"].discovery_fault = aws_error("ExpiredToken").at("main")
        first, *_ = (await list_targets(gateway)).targets
        assert first.target == pb.Target(account="main")
        assert first.last_error.code == grpc.StatusCode.UNAVAILABLE.value[0]


class TestFaultsInside:
    """An exception's own text is for the log."""

    @pytest.fixture
    def broken(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
        def stumble(*_: object) -> None:
            raise RuntimeError("the password is swordfish")

        for method in ("of", "budget_of"):
            monkeypatch.setattr(type(gateway.registry), method, stumble)
        return gateway

    async def test_a_unary_call_is_internal(self, broken: Gateway, log: list[Any]) -> None:
        for call in (broken.describe(), list_targets(broken)):
            refused = await failure(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
            assert b"swordfish" not in refused.status.SerializeToString()
            assert "swordfish" not in refused.text
        # The caller may hear of it before the log does.
        told = ["INTERNAL", "INTERNAL"]
        await eventually(lambda: [entry["code"] for entry in log if entry["event"] == "call"] == told)
        assert any(isinstance(entry.get("exc_info"), RuntimeError) for entry in log)

    async def test_a_stream_is_internal(self, broken: Gateway) -> None:
        refused = await failure(broken.stream())
        assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "swordfish" not in refused.text

    async def test_a_lookup_is_internal(self, gateway: Gateway, log: list[Any]) -> None:
        await gateway.describe()

        def stumble(_: object) -> None:
            raise RuntimeError("the password is swordfish")

        gateway.world.ec2("other").between = stumble
        for request in ({"image_ids": [image(1)]}, {"dry_run": True}):
            refused = await gateway.refused(accounts=["other"], **request)
            assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
            assert "swordfish" not in refused.text
        assert any(isinstance(entry.get("exc_info"), RuntimeError) for entry in log)

    async def test_a_discovery_is_not_told_either(self, gateway: Gateway) -> None:
        gateway.world.accounts["other"].discovery_fault = RuntimeError("the password is swordfish")
        refused = await gateway.refused(accounts=["other"])
        assert refused.reason == "INTERNAL"
        assert "swordfish" not in refused.text


async def test_health_tells_of_the_whole_and_of_the_service(gateway: Gateway) -> None:
    stub: Any = health_pb2_grpc.HealthStub(gateway.channel)
    for name in ("", SERVICE.full_name):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
        assert answer.status == SERVING
    refused = await failure(stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=PATIENCE))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_health_watcher_is_told_when_the_gateway_drains(gateway: Gateway) -> None:
    stub: Any = health_pb2_grpc.HealthStub(gateway.channel)
    watcher = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
    assert (await watcher.read()).status == SERVING
    await gateway.listening.health.drain()
    assert (await watcher.read()).status == NOT_SERVING
    watcher.cancel()


async def reflected(gateway: Gateway) -> list[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    call = stub.ServerReflectionInfo(timeout=PATIENCE)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    answer = await call.read()
    return [service.name for service in answer.list_services_response.service]


async def test_reflection_names_the_services(gateway: Gateway) -> None:
    names = await reflected(gateway)
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= set(names)


async def test_reflection_can_be_switched_off(serve: Serve) -> None:
    gateway = await serve(reflection=False)
    refused = await failure(reflected(gateway))
    assert refused.code in NOT_THERE


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        ({}, True),
        ({"listen": "0.0.0.0:0", "insecure": True}, False),
        ({"listen": "0.0.0.0:0", "insecure": True, "reflection": True}, True),
    ],
)
async def test_reflection_answers_only_this_machine_unless_told(
    serve: Serve, settings: dict[str, Any], answers: bool
) -> None:
    gateway = await serve(**settings)
    target = gateway.address.replace("0.0.0.0", "127.0.0.1")
    async with grpc.aio.insecure_channel(target) as channel:
        reached = dataclasses.replace(gateway, channel=channel)
        if answers:
            assert SERVICE.full_name in await reflected(reached)
        else:
            assert (await failure(reflected(reached))).code in NOT_THERE


async def test_a_unix_socket_can_be_listened_on(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A socket's path has at most 107 characters: not below the test's own long name.
    gateway = await serve(listen=f"unix:{tmp_path_factory.mktemp('s')}/gateway.sock")
    assert len(outcomes(await gateway.describe())) == 3


async def test_every_call_is_logged_with_its_method_code_and_reason(gateway: Gateway, log: list[Any]) -> None:
    await gateway.describe()
    await gateway.stream()
    await gateway.refused(max_results=0)
    calls = [entry for entry in log if entry["event"] == "call"]
    assert [(entry["method"], entry["code"], entry.get("reason")) for entry in calls] == [
        ("DescribeStoreImageTasks", "OK", None),
        ("StreamStoreImageTasks", "OK", None),
        ("DescribeStoreImageTasks", "INVALID_ARGUMENT", "INVALID_FIELD"),
    ]


async def test_a_call_under_way_may_finish_while_the_gateway_drains(
    world: FakeWorld, clock: VirtualClock
) -> None:
    hold = world.ec2().hang()
    async with serving(world, clock) as gateway:
        call = asyncio.create_task(gateway.describe())
        await hold.reached()
        draining = asyncio.create_task(gateway.listening.drain(gateway.gateway, 10))
        await eventually(lambda: gateway.listening.health._draining)
        hold.release()
        assert len(outcomes(await call)) == 3
        await draining


async def test_calls_that_do_not_end_in_time_are_cancelled_and_counted_out(
    world: FakeWorld, clock: VirtualClock
) -> None:
    hold = world.ec2().hang()
    async with serving(world, clock) as gateway:
        call = gateway.open_stream(None)
        await hold.reached()
        await gateway.listening.drain(gateway.gateway, 0.1)
        assert gateway.boundary.in_flight == 0
        await eventually(lambda: hold.waiting == 0)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call:
                pass


def test_what_libraries_log_looks_like_what_we_log() -> None:
    program = (
        "import logging\n"
        "from imagetasks_server.telemetry import configure_log\n"
        "configure_log('debug', json_lines=True)\n"
        "theirs = logging.getLogger('botocore.auth')\n"
        "theirs.debug('signed with swordfish')\n"
        "theirs.warning('found %d', 3)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('asyncio').exception('a task')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    warning, error = map(json.loads, done.stderr.splitlines())
    assert (warning["event"], warning["level"], warning["logger"]) == ("found 3", "warning", "botocore.auth")
    assert warning["timestamp"].endswith("Z")
    assert (error["event"], error["exception"][0]["exc_type"]) == ("a task", "ZeroDivisionError")


def test_in_the_sandbox_reflection_is_served_wherever_it_listens() -> None:
    settings = os.environ | {"IMAGETASKS_INSECURE": "true"}
    with (
        gateway_process("--sandbox", "--listen", "0.0.0.0:0", environment=settings) as running,
        grpc.insecure_channel(running.address.replace("0.0.0.0", "127.0.0.1")) as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
        assert SERVICE.full_name in {each.name for each in answer.list_services_response.service}
