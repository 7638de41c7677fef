"""DescribeStoreImageTasks as a question to a book: EC2's rules for ids, filters, pages and tokens.

Pure. The rules are those of EC2's documentation of the action. Where that leaves open whether NextToken is an
offset or a place, it is a place: no task is skipped or repeated while others start.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from imagetasks_sandbox import refusal
from imagetasks_sandbox.tasks import Book, Place, Task

MAX_IMAGE_IDS = 20
MAX_PAGE = 200
MAX_FILTER_VALUES = 200

_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FILTERS: dict[str, Callable[[Task], str]] = {
    "bucket": lambda task: task.bucket,
    "task-state": lambda task: task.state.value,
}


@dataclass(frozen=True)
class Question:
    """One checked DescribeStoreImageTasks request.

    Attributes:
        image_ids: Only the newest task of each of these; filters do not count then. Empty: all tasks.
        filters: All must hold for a task.
        size: Most tasks of the page.
        behind: Where the page before ended.
    """

    size: int
    image_ids: tuple[str, ...] = ()
    filters: tuple[Callable[[Task], bool], ...] = field(default=())
    behind: Place | None = None


def check_image_id(image_id: str) -> str:
    """Return the id if it has the form of an AMI id.

    Raises:
        Refusal: InvalidAMIID.Malformed.
    """
    if not _IMAGE_ID.fullmatch(image_id):
        raise refusal.image_id_malformed(image_id)
    return image_id


def ask(parameters: Mapping[str, Any], *, scope: str, page_size: int) -> Question:
    """Check a request's parameters. Whether the AMIs exist is not checked here.

    Args:
        parameters: As EC2's model names them: ImageIds, Filters, MaxResults, NextToken.
        scope: Account and Region; a token is good in its own scope only.
        page_size: The page where MaxResults is absent.

    Raises:
        Refusal: InvalidAMIID.Malformed, InvalidParameterValue, InvalidParameterCombination,
            InvalidPaginationToken or FilterLimitExceeded.
    """
    image_ids = parameters.get("ImageIds", ())
    max_results = parameters.get("MaxResults")
    token = parameters.get("NextToken")
    if max_results is not None:
        if image_ids:
            raise refusal.exclusive("imageIds", "maxResults")
        if not 1 <= max_results <= MAX_PAGE:
            raise refusal.invalid_value(
                f"Value ( {max_results} ) for parameter maxResults is invalid. "
                f"Expecting a value between 1 and {MAX_PAGE}."
            )
    if len(image_ids) > MAX_IMAGE_IDS:
        raise refusal.invalid_value(f"The maximum number of image IDs in a request is {MAX_IMAGE_IDS}")
    for image_id in image_ids:
        check_image_id(image_id)
    return Question(
        size=max_results if max_results is not None else page_size,
        image_ids=tuple(dict.fromkeys(image_ids)),
        filters=_filters(parameters.get("Filters", ())),
        behind=_place(token, scope) if token else None,
    )


def answer(question: Question, book: Book, now: datetime, scope: str) -> tuple[list[Task], str | None]:
    """The page of tasks that a question asks for, newest first, and the token of the next one, if any."""
    if question.image_ids:
        newest: dict[str, Task] = {}
        for _, task in book.newest_first(now):
            if task.ami_id in question.image_ids:
                newest.setdefault(task.ami_id, task)
        return list(newest.values()), None
    page: list[Task] = []
    last: Place | None = None
    for place, task in book.newest_first(now, question.behind):
        if all(holds(task) for holds in question.filters):
            if len(page) == question.size:
                assert last is not None
                return page, _token(last, scope)
            page.append(task)
            last = place
    return page, None


def _filters(filters: Sequence[Mapping[str, Any]]) -> tuple[Callable[[Task], bool], ...]:
    if sum(len(each.get("Values", ())) for each in filters) > MAX_FILTER_VALUES:
        raise refusal.Refusal(
            "FilterLimitExceeded",
            f"The maximum number of filter values specified on a single call is {MAX_FILTER_VALUES}",
        )
    conditions = []
    for each in filters:
        name = each.get("Name")
        if name not in _FILTERS:
            raise refusal.filter_invalid(name)
        conditions.append(_condition(_FILTERS[name], each.get("Values", ())))
    return tuple(conditions)


def _condition(value_of: Callable[[Task], str], patterns: Sequence[str]) -> Callable[[Task], bool]:
    expressions = [wildcard(pattern) for pattern in patterns]
    return lambda task: any(expression.fullmatch(value_of(task)) for expression in expressions)


def wildcard(pattern: str) -> re.Pattern[str]:
    r"""EC2's filter pattern: ``*`` is any text, ``?`` one character, ``\`` takes the next literally."""
    parts = []
    characters = iter(pattern)
    for character in characters:
        if character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        elif character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def _token(place: Place, scope: str) -> str:
    started, number = place
    raw = json.dumps([scope, (started - _EPOCH) // timedelta(milliseconds=1), number])
    return base64.urlsafe_b64encode(f"{raw}{binascii.crc32(raw.encode()):08x}".encode()).decode()


def _place(token: str, scope: str) -> Place:
    try:
        decoded = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        raw, checksum = decoded[:-8], decoded[-8:]
        if checksum != f"{binascii.crc32(raw.encode()):08x}":
            raise refusal.token_invalid()
        of_scope, milliseconds, number = json.loads(raw)
    except ValueError:  # not base64, not UTF-8, not JSON
        raise refusal.token_invalid() from None
    if of_scope != scope:
        raise refusal.token_invalid()
    return _EPOCH + timedelta(milliseconds=milliseconds), number
