"""What the doctor looks at in a target: the permission, and EC2's habits that the gateway is built on.

At most five calls of EC2's own small allowance for this operation.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from imagetasks_server.checks import Check, Patient, Room, Task
from imagetasks_server.errors import Error

SMALL_PAGE: Final = 5
LARGE_PAGE: Final = 200

_FULL_READS: Final = "Report it to the project; meanwhile full_read_every = 1 makes every read a full one"
_REPORT: Final = "Report it to the project: the gateway relies on it"


async def check_target(patient: Patient, account: str, region: str) -> list[Check]:
    """The checks of one target; after a refusal nothing more is asked."""
    room = Room(account, region)

    async def ask(**parameters: Any) -> Any:
        return await patient.ask("ec2", region, "describe_store_image_tasks", **parameters)

    permission = await _permission(room, ask)
    if permission.status == "fail":
        return [permission]
    try:
        small = await ask(MaxResults=SMALL_PAGE)
        large = await ask(MaxResults=LARGE_PAGE)
    except Error as error:
        return [permission, room.failed("tasks", error)]
    first, tasks = small["StoreImageTaskResults"], large["StoreImageTaskResults"]
    return [
        permission,
        _page_size(room, small, large),
        _order(room, tasks),
        _finished(room, first, tasks),
        await _newest_only(room, ask, tasks),
        await _no_page_size(room, ask, tasks),
    ]


async def _permission(room: Room, ask: Any) -> Check:
    try:
        await ask(DryRun=True)
    except Error as error:
        if error.reason == "DRY_RUN_OPERATION":
            return room.ok("permission", "a dry run would have succeeded")
        return room.failed("permission", error)
    return room.warn("permission", "EC2 answered a dry run with a result", _REPORT)


def _page_size(room: Room, small: Any, large: Any) -> Check:
    few, many = len(small["StoreImageTaskResults"]), len(large["StoreImageTaskResults"])
    seen = f"{few} tasks where {SMALL_PAGE} were asked for, {many} where {LARGE_PAGE}"
    if few > SMALL_PAGE or many > LARGE_PAGE:
        return room.fail("page size", seen, _REPORT)
    if many > few and not small.get("NextToken"):
        return room.fail("page size", f"{seen}, and no token of a next page", _REPORT)
    return room.ok("page size", seen)


def _order(room: Room, tasks: Sequence[Task]) -> Check:
    starts = [each["TaskStartTime"] for each in tasks if each.get("TaskStartTime")]
    if len(starts) < 2:  # noqa: PLR2004  # an order needs two
        return room.skip("order", "there are not two tasks")
    if starts != sorted(starts, reverse=True):
        return room.fail("order", f"{len(starts)} tasks are not listed newest first", _FULL_READS)
    return room.ok("order", f"{len(starts)} tasks, newest first")


def _finished(room: Room, before: Sequence[Task], after: Sequence[Task]) -> Check:
    now = {_identity(each): each for each in after}
    finished = [each for each in before if each.get("StoreTaskState") in {"Completed", "Failed"}]
    if not finished:
        return room.skip("finished tasks", "none has ended among the newest")
    changed = [each for each in finished if now.get(_identity(each), each) != each]
    if changed:
        seen = f"{len(changed)} of {len(finished)} ended tasks changed between two reads"
        return room.fail("finished tasks", seen, _FULL_READS)
    return room.ok("finished tasks", f"{len(finished)} did not change between two reads")


async def _newest_only(room: Room, ask: Any, tasks: Sequence[Task]) -> Check:
    name = "ids"
    again = [image for image, count in Counter(each.get("AmiId") for each in tasks).items() if count > 1]
    image = next(filter(None, again), None)
    if image is None:
        return room.skip(name, "no AMI has two tasks")
    try:
        answer = await ask(ImageIds=[image])
    except Error as error:
        return room.failed(name, error)
    newest = next(each for each in tasks if each.get("AmiId") == image)
    found = [_identity(each) for each in answer["StoreImageTaskResults"]]
    if found != [_identity(newest)]:
        return room.fail(name, f"asked for {image} EC2 lists {len(found)} tasks, or not the newest", _REPORT)
    return room.ok(name, f"of {image}'s tasks only the newest is listed")


async def _no_page_size(room: Room, ask: Any, tasks: Sequence[Task]) -> Check:
    name = "ids with MaxResults"
    image = next((each["AmiId"] for each in tasks if each.get("AmiId")), None)
    if image is None:
        return room.skip(name, "there is no task")
    try:
        await ask(ImageIds=[image], MaxResults=SMALL_PAGE)
    except Error as error:
        if error.aws_code == "InvalidParameterCombination":
            return room.ok(name, "refused, as documented")
        return room.failed(name, error)
    return room.warn(name, "EC2 takes both, though it documents that it does not", _REPORT)


def _identity(task: Task) -> tuple[Any, ...]:
    return tuple(task.get(member) for member in ("AmiId", "Bucket", "S3objectKey", "TaskStartTime"))
