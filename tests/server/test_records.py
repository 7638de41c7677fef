"""What the log tells of each call, and what it never tells."""

import asyncio
import contextlib
import os
import re
from typing import Any

import grpc
import pytest
import structlog
from fake_ec2 import FakeWorld
from gateway_stage import NO_AGE, PATIENCE, Describe, Gateway, Serve, eventually

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_sandbox.launch import RunningSandbox, sandbox
from imagetasks_server.telemetry import Event, configure_log
from processes import ROOT, becomes
from processes import gateway as process

ONE = {"accounts": ["main"], "regions": ["eu-central-1"]}
REQUEST_ID = "x-request-id"


def calls(log: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in log if entry["event"] == Event.CALL]


async def ids(call: Any) -> list[str]:
    return [value for key, value in await call.trailing_metadata() if key == REQUEST_ID]


async def test_a_line_tells_what_a_call_was_about_and_what_it_cost(gateway: Gateway, log: list[Any]) -> None:
    await gateway.describe(**ONE)
    await gateway.describe()
    await gateway.refused(accounts=["?"])
    await gateway.boundary.idle()
    first, second, refused = calls(log)
    assert (first["method"], first["code"], first["ec2_calls"]) == ("DescribeStoreImageTasks", "OK", 1)
    assert (first["targets"], first["names"], first["answers"]) == (1, ("main/eu-central-1",), {"own": 1})
    assert first["peer"].startswith("ipv4:127.0.0.1:")
    assert first["ms"] >= 0
    assert (second["targets"], second["ec2_calls"], second["answers"]) == (3, 2, {"cached": 1, "own": 2})
    assert (refused["code"], refused["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert "targets" not in refused


async def test_many_targets_are_counted_only(serve: Serve, clock: Any, log: list[Any]) -> None:
    regions = tuple(f"eu-central-{n}" for n in range(1, 9))
    gateway = await serve(FakeWorld(clock, {"main": regions}))
    await gateway.describe()
    await gateway.boundary.idle()
    (line,) = calls(log)
    assert line["targets"] == 8
    assert "names" not in line


async def test_a_shared_read_counts_on_the_call_that_began_it(gateway: Gateway, log: list[Any]) -> None:
    hold = gateway.world.ec2().hang()
    first = asyncio.create_task(gateway.describe(**ONE))
    await hold.reached()
    second = asyncio.create_task(gateway.describe(**ONE))
    await eventually(lambda: gateway.inside == 2)
    hold.release()
    await asyncio.gather(first, second)
    await gateway.boundary.idle()
    assert sorted((line["ec2_calls"], *line["answers"].items()) for line in calls(log)) == [
        (0, ("shared", 1)),
        (1, ("own", 1)),
    ]


async def test_a_stream_is_one_line_at_its_end(gateway: Gateway, log: list[Any]) -> None:
    gateway.world.ec2().add()
    messages = await gateway.stream(**ONE)
    await gateway.boundary.idle()
    (line,) = calls(log)
    assert (line["messages"], line["answers"]) == (len(messages), {"own": 1})


async def test_a_caller_can_quote_its_own_request_id(gateway: Gateway, log: list[Any]) -> None:
    call = gateway.stub.DescribeStoreImageTasks(Describe(), metadata=((REQUEST_ID, "build-17:a.b/c"),))
    await call
    assert await ids(call) == ["build-17:a.b/c"]
    stream = gateway.stub.StreamStoreImageTasks(
        pb.StreamStoreImageTasksRequest(), metadata=((REQUEST_ID, "second"),)
    )
    assert [message async for message in stream]
    assert await ids(stream) == ["second"]
    await gateway.boundary.idle()
    assert [line["request_id"] for line in calls(log)] == ["build-17:a.b/c", "second"]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, 'a"b', "a{b}", "tok%20en"])
async def test_what_is_no_sane_request_id_is_replaced(gateway: Gateway, log: list[Any], sent: str) -> None:
    call = gateway.stub.DescribeStoreImageTasks(Describe(), metadata=((REQUEST_ID, sent),))
    await call
    await gateway.boundary.idle()
    (line,) = calls(log)
    assert await ids(call) == [line["request_id"]]
    assert re.fullmatch("[0-9a-f]{16}", line["request_id"])


async def test_a_failed_call_has_a_request_id_beside_its_status(gateway: Gateway, log: list[Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.describe(accounts=["nobody"])
    trailing = dict(caught.value.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailing
    await gateway.boundary.idle()
    assert trailing[REQUEST_ID] == calls(log)[0]["request_id"]


async def test_lines_within_a_call_have_its_request_id_and_reads_have_none(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    within: list[dict[str, Any]] = []
    reading: list[dict[str, Any]] = []
    resolve = gateway.gateway.targets.resolve

    async def noted(*arguments: Any, **keywords: Any) -> Any:
        within.append(structlog.contextvars.get_contextvars())
        return await resolve(*arguments, **keywords)

    monkeypatch.setattr(gateway.gateway.targets, "resolve", noted)
    ec2 = gateway.world.ec2()
    monkeypatch.setattr(ec2, "between", lambda _: reading.append(structlog.contextvars.get_contextvars()))
    for request_id in ("one", "two"):
        request = Describe(max_age=NO_AGE, **ONE)
        await gateway.stub.DescribeStoreImageTasks(request, metadata=((REQUEST_ID, request_id),))
    assert within == [{"request_id": "one"}, {"request_id": "two"}]
    assert reading == [{}, {}]


SECRETS = {
    "token": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2VjcmV0LXNpZ25hdHVyZQ",
    "key": "AKIASECRETSECRETSECR",
    "secret": "wJalrSecretSecretSecretSecretSecretKey00",
    "session": "FwoGZXIvYXdzSecretSessionToken",
}


def test_no_secret_is_ever_logged() -> None:
    found: list[str] = []
    with (
        sandbox("--seed", "--no-throttle", "--speed", "0.001") as upstream,
        _with_secrets(upstream) as running,
    ):
        with grpc.insecure_channel(running.address) as channel:
            stub: Any = StoreImageTaskServiceStub(channel)
            metadata = (("authorization", f"Bearer {SECRETS['token']}"), (REQUEST_ID, f"{SECRETS['token']}!"))
            request = pb.DescribeStoreImageTasksRequest(max_results=5)
            answer = stub.DescribeStoreImageTasks(request, metadata=metadata, timeout=PATIENCE)
            assert answer.next_token
            found.append(answer.next_token)
            for token in (answer.next_token, answer.next_token[:-4] + "AAAA"):
                request.next_token = token
                found.append(token)
                with contextlib.suppress(grpc.RpcError):
                    stub.DescribeStoreImageTasks(request, metadata=metadata, timeout=PATIENCE)
            watch = stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest(), metadata=metadata)
            resume = next(event.resume_token for event in watch if event.resume_token)
            watch.cancel()
            found.append(resume)
            again = stub.WatchStoreImageTasks(
                pb.WatchStoreImageTasksRequest(resume_token=resume), metadata=metadata
            )
            assert next(again).started.resumed
            again.cancel()
        assert becomes(lambda: sum('"method":"WatchStoreImageTasks"' in line for line in running.log) == 2)
        log = "".join(running.log)
    assert '"request_id"' in log
    for secret in (*SECRETS.values(), *found):
        assert secret not in log


def _with_secrets(upstream: RunningSandbox) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    environment = upstream.environment(kept) | {
        "AWS_ACCESS_KEY_ID": SECRETS["key"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["secret"],
        "AWS_SESSION_TOKEN": SECRETS["session"],
    }
    return process("--log-level", "debug", environment=environment)


def test_a_fault_is_logged_without_what_was_in_the_variables(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(token: str) -> None:
        raise RuntimeError(f"after {len(token)}")

    for json_lines in (True, False):
        with contextlib.ExitStack() as stack:
            stack.callback(structlog.reset_defaults)
            configure_log("info", json_lines=json_lines)
            try:
                fails(SECRETS["token"])
            except RuntimeError as error:
                structlog.get_logger().error(Event.CALL_FAILED, exc_info=error)
        written = capsys.readouterr().err
        assert "RuntimeError" in written
        assert f"after {len(SECRETS['token'])}" in written
        assert SECRETS["token"][:20] not in written


def test_every_event_is_declared_and_told() -> None:
    told: set[str] = set()
    for path in sorted((ROOT / "server/imagetasks_server").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        told.update(re.findall(r"\bEvent\.([A-Z_]+)", text))
        # Nothing else is ever logged.
        assert (
            re.findall(r"\blog\.(?:debug|info|warning|error|exception|critical)\((?!\s*Event\.)", text) == []
        )
    assert told == set(Event.__members__)
