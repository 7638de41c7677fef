"""EC2's rules of DescribeStoreImageTasks, as a question to one target, in EC2's presumed order. Pure.

At most 20 image ids; with them filters are checked and ignored, only the newest task of each AMI is answered,
and MaxResults is refused. Pages of at most MaxResults, 1 to 200, with tokens. An id is known by its AMI or by
a task of it.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from canned.world import Refusal, Target, Task

PAGE_SIZE = 200
MAX_IMAGE_IDS = 20
MAX_FILTERS = 50
MAX_FILTER_VALUES = 200

_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
_FILTERS = {"bucket": "Bucket", "task-state": "StoreTaskState"}


def answer(
    parameters: Mapping[str, Any], target: Target, scope: str, page_size: int = PAGE_SIZE
) -> tuple[Sequence[Task], str | None]:
    """A page of tasks and the token of the next one, if any.

    Args:
        parameters: ImageIds, Filters, MaxResults, NextToken, DryRun, as EC2's model names them.
        target: What is asked.
        scope: Account and Region: a token is good in its own only.
        page_size: The page where MaxResults is absent.

    Raises:
        Refusal: EC2 would refuse.
    """
    if target.refusal:
        raise target.refusal
    image_ids = parameters.get("ImageIds", ())
    size = _size(parameters, page_size)
    _check_image_ids(image_ids)
    conditions = _conditions(parameters.get("Filters", ()))
    start = _start(parameters.get("NextToken"), scope)
    if parameters.get("DryRun"):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
    if image_ids:
        return _newest(image_ids, target), None
    return _page(target.tasks, start, size, conditions, scope)


def _size(parameters: Mapping[str, Any], page_size: int) -> int:
    size = parameters.get("MaxResults")
    if size is None:
        return page_size
    if parameters.get("ImageIds"):
        raise Refusal(
            "InvalidParameterCombination",
            "The parameter imageIds cannot be used with the parameter maxResults",
        )
    if not 1 <= size <= PAGE_SIZE:
        raise _invalid_value(
            f"Value ( {size} ) for parameter maxResults is invalid. "
            f"Expecting a value between 1 and {PAGE_SIZE}."
        )
    return int(size)


def _check_image_ids(image_ids: Sequence[str]) -> None:
    if len(image_ids) > MAX_IMAGE_IDS:
        raise _invalid_value(f"The maximum number of image IDs in a request is {MAX_IMAGE_IDS}")
    for image_id in image_ids:
        if not _IMAGE_ID.fullmatch(image_id):
            raise Refusal("InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")')


def _conditions(filters: Sequence[Mapping[str, Any]]) -> list[Callable[[Task], bool]]:
    if len(filters) > MAX_FILTERS:
        raise _limit(f"The maximum number of filters specified on a single call is {MAX_FILTERS}")
    if sum(len(each.get("Values", ())) for each in filters) > MAX_FILTER_VALUES:
        raise _limit(f"The maximum number of filter values specified on a single call is {MAX_FILTER_VALUES}")
    conditions = []
    for each in filters:
        name = each.get("Name")
        if name not in _FILTERS:
            raise _invalid_value(f"The filter '{name or 'null'}' is invalid")
        conditions.append(_condition(_FILTERS[name], each.get("Values", ())))
    return conditions


def _condition(member: str, patterns: Sequence[str]) -> Callable[[Task], bool]:
    # A filter without values holds for nothing.
    expressions = [_wildcard(pattern) for pattern in patterns]
    return lambda task: member in task and any(each.fullmatch(task[member]) for each in expressions)


def _wildcard(pattern: str) -> re.Pattern[str]:
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    meanings = {"*": ".*", "?": "."}
    return re.compile(
        "".join(meanings.get(part) or re.escape(part[-1]) for part in parts),
        re.DOTALL,
    )


def _newest(image_ids: Sequence[str], target: Target) -> Sequence[Task]:
    newest: dict[str, Task] = {}
    for task in target.tasks:
        if task.get("AmiId") in image_ids:
            newest.setdefault(task["AmiId"], task)
    asked = dict.fromkeys(image_ids)
    unknown = [image_id for image_id in asked if image_id not in newest and image_id not in target.images]
    if unknown:
        noun, verb = ("id", "does") if len(unknown) == 1 else ("ids", "do")
        raise Refusal("InvalidAMIID.NotFound", f"The image {noun} '[{', '.join(unknown)}]' {verb} not exist")
    return list(newest.values())


def _page(
    tasks: Sequence[Task], start: int, size: int, conditions: Sequence[Callable[[Task], bool]], scope: str
) -> tuple[Sequence[Task], str | None]:
    page: list[Task] = []
    for place in range(start, len(tasks)):
        if all(holds(tasks[place]) for holds in conditions):
            if len(page) == size:
                return page, _token(place, scope)
            page.append(tasks[place])
    return page, None


def _token(place: int, scope: str) -> str:
    return base64.b64encode(json.dumps([scope, place]).encode()).decode()


def _start(token: str | None, scope: str) -> int:
    if not token:
        return 0
    try:
        of, place = json.loads(base64.b64decode(token, validate=True))
    except (ValueError, TypeError, binascii.Error):
        of, place = "", 0
    if of != scope:
        raise Refusal("InvalidPaginationToken", "The specified pagination token is not valid or is expired.")
    return int(place)


def _invalid_value(message: str) -> Refusal:
    return Refusal("InvalidParameterValue", message)


def _limit(message: str) -> Refusal:
    return Refusal("FilterLimitExceeded", message)
