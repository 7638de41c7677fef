"""Traces: which spans there are, how they hang together, and that they arrive."""

import asyncio
import builtins
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from aiohttp import web
from fake_ec2 import aws_error
from gateway_stage import NO_AGE, Describe, Serve, eventually
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from scripted_aws import ACCOUNT, ScriptedAws

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.ec2 import Aws
from imagetasks_server.observation import traced
from imagetasks_server.tally import Purpose
from imagetasks_server.targets import Target
from imagetasks_server.tracing import Tracer
from imagetasks_server.upstream import Query

ONE = {"accounts": ["main"], "regions": ["eu-central-1"]}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SERVICE = "imagetasks.v1.StoreImageTaskService"


class Traces:
    """What was traced."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = Tracer(self.provider, "1")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.name == name]

    @property
    def calls(self) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.name.startswith(SERVICE)]

    @property
    def asked(self) -> list[ReadableSpan]:
        return self.named("ec2/DescribeStoreImageTasks")


def span_id(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr,no-any-return]


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


@pytest.fixture
def traces() -> Traces:
    return Traces()


async def test_a_call_hangs_below_its_callers_span_and_ec2s_below_it(
    serve: Serve, traces: Traces, log: list[Any]
) -> None:
    gateway = await serve(tracer=traces.tracer)
    await gateway.stub.DescribeStoreImageTasks(Describe(**ONE), metadata=(("traceparent", CALLER),))
    await gateway.boundary.idle()
    (call,) = traces.calls
    (asked,) = traces.asked
    assert call.name == f"{SERVICE}/DescribeStoreImageTasks"
    assert call.parent is not None
    assert f"{call.parent.trace_id:032x}-{call.parent.span_id:016x}" == CALLER[3:-3]
    assert call.attributes is not None
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert asked.parent is not None
    assert asked.parent.span_id == span_id(call)
    assert dict(asked.attributes or {}) == {
        "imagetasks.account": "main",
        "imagetasks.kind": "full",
        "imagetasks.continued": False,
        "cloud.region": "eu-central-1",
    }
    line = next(entry for entry in log if entry["event"] == "call")
    assert line["trace_id"] == CALLER[3:35]
    assert line["request_id"] == call.attributes["imagetasks.request_id"]


async def test_a_shared_read_is_linked_to_all_who_wait(serve: Serve, traces: Traces) -> None:
    gateway = await serve(tracer=traces.tracer)
    hold = gateway.world.ec2().hang()
    first = asyncio.create_task(gateway.describe(**ONE))
    await hold.reached()
    later = [asyncio.create_task(gateway.describe(**ONE)) for _ in range(2)]
    # The next read has two who wait from its beginning.
    fresh = [asyncio.create_task(gateway.describe(max_age=NO_AGE, **ONE)) for _ in range(2)]
    await eventually(lambda: gateway.inside == 5)
    hold.release()
    await asyncio.gather(first, *later, *fresh)
    await gateway.boundary.idle()
    alone, shared = traces.asked
    assert len(traces.calls) == 5
    by_id = {span_id(span) for span in traces.calls}
    assert alone.parent is not None
    assert len(linked(alone)) == 2
    assert shared.parent is None
    assert len(linked(shared)) == 2
    assert {alone.parent.span_id} | linked(alone) | linked(shared) == by_id


async def test_what_fails_at_ec2_is_marked(serve: Serve, traces: Traces) -> None:
    gateway = await serve(tracer=traces.tracer)
    gateway.world.ec2().fail(aws_error("InternalError", status=500))
    await gateway.refused(**ONE)
    await gateway.refused(accounts=["nobody"])
    (asked,) = traces.asked
    assert (asked.attributes or {})["error.type"] == "InternalError"
    assert asked.status.status_code == StatusCode.ERROR
    failed, unknown = traces.calls
    assert failed.status.status_code == StatusCode.ERROR
    # The caller's own fault is none of the server's.
    assert unknown.status.status_code == StatusCode.UNSET
    assert (unknown.attributes or {})["error.type"] == "UNKNOWN_ACCOUNT"


async def test_ec2_is_told_which_span_its_call_is(traces: Traces, aws: ScriptedAws) -> None:
    settings = AccountSettings(name="main", endpoint_url=aws.url, sts_endpoint_url=aws.url)
    aws.refuse("DescribeStoreImageTasks", "Unavailable", status=503)
    with ThreadPoolExecutor(1) as builders:
        opens = Aws(Settings(), builders, {"before-send": traces.tracer.send_along})
        opened = await asyncio.to_thread(opens.open, settings)
        read_page = opened.read_page(
            Target("main", "eu-central-1", ACCOUNT, "aws"), pay=AsyncMock(), throttled=Mock()
        )
        await opened.identity()
        with traces.tracer.asking("main", "eu-central-1", Purpose(), continued=False):
            await read_page(Query(), None)
        await opened.close()
    (span,) = traces.asked
    context = span.get_span_context()
    assert context is not None
    sent = [each.headers.get("traceparent") for each in aws.asked("DescribeStoreImageTasks")]
    # Both attempts are of one call.
    assert sent == [f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"] * 2
    assert [each.headers.get("traceparent") for each in aws.asked("GetCallerIdentity")] == [None]


async def test_no_span_is_open_while_a_watch_is(serve: Serve, traces: Traces, clock: Any) -> None:
    gateway = await serve(tracer=traces.tracer)
    task = gateway.world.ec2().add()
    request = pb.WatchStoreImageTasksRequest(selector=pb.TaskSelector(**ONE))
    call = gateway.stub.WatchStoreImageTasks(request, metadata=(("traceparent", CALLER),))
    for _ in range(3):
        await call.read()
    (opened,) = traces.calls
    assert traces.named("watch/changes") == []
    gateway.world.ec2().end(task)
    clock.advance(6)
    await call.read()
    await eventually(lambda: traces.named("watch/changes"))
    (told,) = traces.named("watch/changes")
    assert linked(told) == {span_id(opened)}
    assert told.attributes == {"imagetasks.changes": 1}
    assert told.start_time is not None
    assert told.end_time is not None
    assert told.start_time <= told.end_time
    call.cancel()
    await gateway.boundary.idle()
    # The end of the watch adds none.
    assert len(traces.calls) == 1


async def test_a_stream_is_traced_to_its_end(serve: Serve, traces: Traces) -> None:
    gateway = await serve(tracer=traces.tracer)
    call = gateway.open_stream(**ONE)
    hold = gateway.world.ec2().hang()
    await hold.reached()
    assert traces.calls == []
    call.cancel()
    await gateway.boundary.idle()
    (span,) = traces.calls
    assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"


async def test_what_names_no_trace_begins_one(serve: Serve, traces: Traces) -> None:
    gateway = await serve(tracer=traces.tracer)
    await gateway.stub.DescribeStoreImageTasks(Describe(**ONE), metadata=(("traceparent", "00-zz-1-01"),))
    await gateway.boundary.idle()
    assert [span.parent for span in traces.calls] == [None]


async def test_spans_arrive_by_otlp(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    # What is left is sent at the end.
    async with traced(Settings(tracing=True)) as tracer:
        gateway = await serve(tracer=tracer)
        await gateway.describe(**ONE)
        await gateway.boundary.idle()
    await runner.cleanup()
    (resource_spans,) = [each for request in received for each in request.resource_spans]
    resource = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
    assert resource["service.name"] == "imagetasks-server"
    assert resource["deployment.environment.name"] == "test"
    names = sorted(span.name for scope in resource_spans.scope_spans for span in scope.spans)
    assert names == ["ec2/DescribeStoreImageTasks", f"{SERVICE}/DescribeStoreImageTasks"]


async def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "imagetasks_server.tracing", raising=False)
    imported = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delattr("imagetasks_server.tracing", raising=False)
    async with traced(Settings()) as tracer:
        assert tracer is None
    with pytest.raises(ConfigError, match="tracing: needs the extra"):
        async with traced(Settings(tracing=True)):
            pass
