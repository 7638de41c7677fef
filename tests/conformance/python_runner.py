"""The Python client's runner: a command a line in, what the client observes a line out."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

import imagetasks
from imagetasks import channel, errors, requests, watching
from imagetasks.v1 import store_image_tasks_pb2 as pb

REQUESTS: dict[str, Any] = {
    "describe": pb.DescribeStoreImageTasksRequest,
    "list": pb.DescribeStoreImageTasksRequest,
    "stream": pb.StreamStoreImageTasksRequest,
    "targets": pb.ListTargetsRequest,
    "watch": pb.WatchStoreImageTasksRequest,
    "raw_watch": pb.WatchStoreImageTasksRequest,
    "wait": pb.WaitStoreImageTasksRequest,
    "raw_wait": pb.WaitStoreImageTasksRequest,
}
METHODS = {
    "describe": "DescribeStoreImageTasks",
    "targets": "ListTargets",
    "raw_watch": "WatchStoreImageTasks",
    "raw_wait": "WaitStoreImageTasks",
}


class Call:
    """One command carried out."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.command = command
        self.kind: str = command["call"]
        self.request: Any = REQUESTS[self.kind].FromString(base64.b64decode(command["request"]))
        self.last: dict[str, Any] = {}

    async def run(self) -> None:
        """Makes the call and tells what comes of it."""
        left = self.command.get("cancel_after")
        seconds = self.command.get("cancel_after_seconds")
        scheme = "https" if self.command["ca"] else "http"
        client = imagetasks.connect(
            f"{scheme}://{self.command['endpoint']}",
            token=self.command.get("token"),
            ca_bundle=self.command["ca"],
            client_certificate=self.command["certificate"],
            client_key=self.command["key"],
        )
        async with client:
            try:
                async with asyncio.timeout(seconds):
                    async for said in self.observations(client):
                        tell(said)
                        left = None if left is None else left - 1
                        if left == 0:
                            break
            except TimeoutError:
                left = 0
            except errors.Error as error:
                tell(error_told(error) | self.last)
                return
        tell({"event": "cancelled" if left == 0 else "end"} | self.last)

    def observations(self, client: imagetasks.Client) -> AsyncIterator[dict[str, Any]]:
        """What the client yields, told."""
        if self.kind == "watch":
            return self.watch(client)
        if self.kind in METHODS:
            return self.stub(client)
        return self.messages(client)

    async def messages(self, client: imagetasks.Client) -> AsyncIterator[dict[str, Any]]:
        """What the client's own methods return."""
        patience = self.command.get("timeout")
        timeout = requests.Default.TIMEOUT if patience is None else patience
        if self.kind == "list":
            async for page in client.describe(**selection(self.request), timeout=timeout).pages():
                yield message_told(page)
        elif self.kind == "stream":
            async with client.stream(**selection(self.request.selector), timeout=timeout) as stream:
                async for message in stream:
                    yield message_told(message)
        else:
            response = await client.wait(
                **selection(self.request.selector),
                wait_for_appearance=self.request.wait_for_appearance,
                timeout=patience,
            )
            yield message_told(response)

    async def watch(self, client: imagetasks.Client) -> AsyncIterator[dict[str, Any]]:
        """The changes that the client's watch tells, and what it holds at the end."""
        async with client.watch(**selection(self.request.selector)) as watch:
            try:
                async for change in watch:
                    yield change_told(change)
            finally:
                held = sorted(
                    (task_told(task) for task in watch.tasks.values()), key=lambda each: each["task_id"]
                )
                self.last = {"held": held, "stale": sorted("/".join(place) for place in watch.stale)}

    async def stub(self, client: imagetasks.Client) -> AsyncIterator[dict[str, Any]]:
        """What a bare call on the client's channel gives, with metadata."""
        metadata = [*channel.metadata(self.command.get("token")), *self.command.get("metadata", {}).items()]
        metadata = [(k, base64.b64decode(v) if k.endswith("-bin") else v) for k, v in metadata]
        method = getattr(client._stub, METHODS[self.kind])
        call = method(self.request, timeout=self.command.get("timeout"), metadata=metadata)
        try:
            if self.kind == "raw_watch":
                async for message in call:
                    yield message_told(message)
            else:
                yield message_told(await call)
            received = [*await call.initial_metadata(), *await call.trailing_metadata()]
            self.last = {"metadata": {k: text(v) for k, v in received if k.startswith("x-conformance-")}}
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from failure
        finally:
            call.cancel()


def selection(chosen: Any) -> dict[str, Any]:
    """The arguments of the client's methods for a request."""
    named: dict[str, Any] = {
        name: list(getattr(chosen, name)) for name in ("accounts", "regions", "image_ids", "filters")
    }
    if isinstance(chosen, pb.DescribeStoreImageTasksRequest) and chosen.HasField("max_results"):
        named["page_size"] = chosen.max_results
    return named


def message_told(message: Any) -> dict[str, Any]:
    """A message as it was received."""
    return {
        "event": "message",
        "bytes": base64.b64encode(message.SerializeToString()).decode(),
        "tasks": [task_told(task) for task in tasks_in(message)],
    }


def tasks_in(message: Any) -> list[pb.StoreImageTaskResult]:
    """The tasks in a message, in order."""
    if isinstance(message, pb.StreamStoreImageTasksResponse):
        return list(message.page.store_image_task_results)
    if isinstance(message, pb.WatchStoreImageTasksResponse):
        return [change.task for change in message.changes.changes]
    return list(getattr(message, "store_image_task_results", ()))


def task_told(task: pb.StoreImageTaskResult) -> dict[str, Any]:
    """A task as an application reads it: null is what EC2 did not send."""
    return {
        "task_id": task.task_id,
        "ami_id": task.ami_id if task.HasField("ami_id") else None,
        "percentage": task.progress_percentage if task.HasField("progress_percentage") else None,
        "state": task.store_task_state,
        "ec2_state": task.ec2_store_task_state if task.HasField("ec2_store_task_state") else None,
        "failure": task.store_task_failure_reason if task.HasField("store_task_failure_reason") else None,
    }


def change_told(change: watching.Change) -> dict[str, Any]:
    """A change as the application gets it."""
    return {
        "event": "change",
        "type": pb.TaskChange.Type.Name(change.type).removeprefix("TYPE_"),
        "task": task_told(change.task),
        "before": None if change.before is None else task_told(change.before),
        "first": change.is_first,
        "ended": change.has_ended,
        "removal_reason": pb.TaskChange.RemovalReason.Name(change.removal_reason).removeprefix(
            "REMOVAL_REASON_"
        ),
    }


def error_told(error: errors.Error) -> dict[str, Any]:
    """An error as the application gets it."""
    return {
        "event": "error",
        "code": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "account": error.account,
        "region": error.region,
        "aws_error_code": error.aws_error_code,
        "aws_request_id": error.aws_request_id,
        "retry_delay": error.retry_after.total_seconds() if error.retry_after is not None else None,
        "fields": [violation.field for violation in error.field_violations],
        "target_failures": [
            {"account": each.account, "region": each.region, "code": each.code, "reason": each.reason}
            for each in error.target_failures
        ],
    }


def text(value: str | bytes) -> str:
    """A metadata value as a line of JSON can have it."""
    return value if isinstance(value, str) else base64.b64encode(value).decode()


def tell(said: dict[str, Any]) -> None:
    """Writes a line."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main(commands: Iterable[str]) -> None:
    """Carries out a command for each line."""
    for line in commands:
        asyncio.run(Call(json.loads(line)).run())


if __name__ == "__main__":
    main(sys.stdin)
