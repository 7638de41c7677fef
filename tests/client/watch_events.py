"""A watch's messages, for tests."""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status
from scripted_gateway import target, task

from imagetasks.v1 import store_image_tasks_pb2 as pb

Event = pb.WatchStoreImageTasksResponse
Task = pb.StoreImageTaskResult

ENDED = {
    "store_task_state": pb.STORE_TASK_STATE_COMPLETED,
    "ec2_store_task_state": "Completed",
    "progress_percentage": 100,
}
FAILED = {
    "store_task_state": pb.STORE_TASK_STATE_FAILED,
    "ec2_store_task_state": "Failed",
    "store_task_failure_reason": "no bucket",
}


def started(*regions: str, resumed: bool = False, heartbeat: float = 10.0) -> Event:
    interval = Duration()
    interval.FromNanoseconds(round(heartbeat * 1e9))
    targets = [target(region) for region in regions or ("eu-central-1",)]
    return Event(started=Event.Started(resumed=resumed, heartbeat_interval=interval, targets=targets))


def change(kind: str, of: Task, reason: str = "UNSPECIFIED") -> pb.TaskChange:
    return pb.TaskChange(
        type=pb.TaskChange.Type.Value(f"TYPE_{kind}"),
        removal_reason=pb.TaskChange.RemovalReason.Value(f"REMOVAL_REASON_{reason}"),
        task=of,
    )


def group(token: str | None, *changes: pb.TaskChange) -> Event:
    """A group's last message; without a token the group goes on."""
    return Event(changes=Event.Changes(changes=changes, continued=token is None), resume_token=token)


def complete(token: str, *regions: str) -> Event:
    targets = [target(region) for region in regions or ("eu-central-1",)]
    return Event(snapshot_complete=Event.SnapshotComplete(targets=targets), resume_token=token)


def snapshot(token: str, *tasks: Task, region: str = "eu-central-1") -> list[Event]:
    """A target's tasks as one group."""
    added = [group(None, *(change("ADDED", each) for each in tasks))] if tasks else []
    return [*added, complete(token, region)]


def reset(*regions: str) -> Event:
    return Event(reset=Event.Reset(targets=[target(region) for region in regions]))


def heartbeat(token: str) -> Event:
    return Event(heartbeat=Event.Heartbeat(), resume_token=token)


def closing(token: str, reason: str = "DRAINING") -> Event:
    why = Event.Closing.Reason.Value(f"REASON_{reason}")
    return Event(closing=Event.Closing(reason=why), resume_token=token)


def stale(region: str, status: Status | None) -> Event:
    return Event(target_status=Event.TargetStatus(target=target(region), status=status))


def at(percentage: int, number: int = 1, **members: Any) -> Task:
    return task(number=number, progress_percentage=percentage, **members)
