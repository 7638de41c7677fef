"""A gateway that answers what a test tells it to, in threads of its own, so that it serves either client."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import (
    StoreImageTaskServiceServicer,
    add_StoreImageTaskServiceServicer_to_server,
)

# Seconds that something which must happen may take.
PATIENCE = 20

Event = pb.StreamStoreImageTasksResponse
Respond = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Call:
    """A call as it arrived; `over` is set when it has ended, whoever ended it."""

    method: str
    request: Message
    metadata: dict[str, str]
    time_remaining: float | None
    over: threading.Event = field(default_factory=threading.Event)


class ScriptedGateway(StoreImageTaskServiceServicer):
    """Each method answers by the function a test has put in its place, and notes the call."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.calls: list[Call] = []
        self.describe: Respond = _nothing_scripted
        self.stream: Respond = _nothing_scripted
        self.targets: Respond = _nothing_scripted
        self.watch: Respond = _nothing_scripted
        self.wait: Respond = _nothing_scripted

    def DescribeStoreImageTasks(  # noqa: N802
        self,
        request: pb.DescribeStoreImageTasksRequest,
        context: grpc.ServicerContext,
    ) -> pb.DescribeStoreImageTasksResponse:
        self._note("describe", request, context)
        return self.describe(request, context)

    def StreamStoreImageTasks(  # noqa: N802
        self,
        request: pb.StreamStoreImageTasksRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[Event]:
        self._note("stream", request, context)
        yield from self.stream(request, context)

    def WatchStoreImageTasks(  # noqa: N802
        self,
        request: pb.WatchStoreImageTasksRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.WatchStoreImageTasksResponse]:
        self._note("watch", request, context)
        yield from self.watch(request, context)

    def WaitStoreImageTasks(  # noqa: N802
        self,
        request: pb.WaitStoreImageTasksRequest,
        context: grpc.ServicerContext,
    ) -> pb.WaitStoreImageTasksResponse:
        self._note("wait", request, context)
        return self.wait(request, context)

    def ListTargets(  # noqa: N802
        self,
        request: pb.ListTargetsRequest,
        context: grpc.ServicerContext,
    ) -> pb.ListTargetsResponse:
        self._note("targets", request, context)
        return self.targets(request, context)

    def _note(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        call = Call(method, request, metadata, context.time_remaining())
        self.calls.append(call)
        if not context.add_callback(call.over.set):
            call.over.set()


def waiting(_: Message, context: grpc.ServicerContext) -> NoReturn:
    """Answers never: returns when the caller has left."""
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(PATIENCE)
    context.abort(grpc.StatusCode.CANCELLED, "the caller left")
    raise AssertionError


def gated(before: Iterable[Event], gate: threading.Event, after: Iterable[Event] = ()) -> Respond:
    """A stream that stops half-way until the gate opens or the caller leaves."""

    def respond(_: Message, context: grpc.ServicerContext) -> Iterator[Event]:
        context.add_callback(gate.set)
        yield from before
        gate.wait(PATIENCE)
        yield from after

    return respond


def _nothing_scripted(_: Message, context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "nothing scripted")
    raise AssertionError


@contextmanager
def serving(
    address: str = "127.0.0.1:0",
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[ScriptedGateway]:
    """Serves a scripted gateway on an address."""
    gateway = ScriptedGateway()
    with ThreadPoolExecutor(max_workers=8) as threads:
        server = grpc.server(threads)
        add_StoreImageTaskServiceServicer_to_server(gateway, server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        gateway.endpoint = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        server.start()
        try:
            yield gateway
        finally:
            server.stop(grace=None).wait(PATIENCE)


def status(code: grpc.StatusCode, message: str, *details: Message) -> Status:
    """A status with details."""
    made = Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        made.details.append(packed)
    return made


def reason(name: str, **metadata: str) -> ErrorInfo:
    """The detail that every error of the gateway carries."""
    return ErrorInfo(domain="imagetasks", reason=name, metadata=metadata)


def failing(failure: Status) -> Respond:
    """Fails each call with the status, details included."""
    codes = {code.value[0]: code for code in grpc.StatusCode}

    def respond(_: Message, context: grpc.ServicerContext) -> NoReturn:
        context.set_trailing_metadata((("grpc-status-details-bin", failure.SerializeToString()),))
        context.abort(codes[failure.code], failure.message)
        raise AssertionError

    return respond


def task(region: str = "eu-central-1", number: int = 1, **members: Any) -> pb.StoreImageTaskResult:
    """A task in progress, unless the members say otherwise."""
    plain = {
        "ami_id": f"ami-{number:017x}",
        "task_start_time": Timestamp(seconds=1_767_225_600 + number, nanos=1_000_000),
        "bucket": "images",
        "s3_object_key": f"ami-{number:017x}.bin",
        "progress_percentage": 45,
        "store_task_state": pb.STORE_TASK_STATE_IN_PROGRESS,
        "ec2_store_task_state": "InProgress",
        "task_id": f"task-{number}",
        "account": "prod",
        "account_id": "123456789012",
        "region": region,
    }
    return pb.StoreImageTaskResult(**(plain | members))


def target(region: str = "eu-central-1", account: str = "prod") -> pb.Target:
    """A target."""
    return pb.Target(account=account, account_id="123456789012", region=region, partition="aws")


def outcome(
    region: str = "eu-central-1",
    failure: Status | None = None,
    source: pb.Source = pb.SOURCE_LIVE,
) -> pb.TargetOutcome:
    """A target's outcome, good unless a failure is given."""
    read_time = None if source == pb.SOURCE_NONE else Timestamp(seconds=1_767_225_600)
    return pb.TargetOutcome(target=target(region), status=failure, source=source, read_time=read_time)


def page_event(*tasks: pb.StoreImageTaskResult) -> Event:
    """A stream's page."""
    return Event(page=Event.Page(target=target(tasks[0].region), store_image_task_results=tasks))


def outcome_event(*arguments: Any, **named: Any) -> Event:
    """A stream's outcome; the arguments are those of `outcome`."""
    return Event(outcome=outcome(*arguments, **named))


def summary_event(tasks: int = 0, targets: int = 0, stale: int = 0, failed: int = 0) -> Event:
    """A stream's last message."""
    return Event(
        summary=Event.Summary(
            task_count=tasks,
            target_count=targets,
            stale_target_count=stale,
            failed_target_count=failed,
        ),
    )


def targets_answer(*regions: str) -> pb.ListTargetsResponse:
    """The answer to ListTargets for targets never read."""
    states = [pb.TargetState(target=target(region)) for region in regions]
    return pb.ListTargetsResponse(targets=states, server_version="1.2.3")
