"""EC2's rules of choosing and ordering tasks. Pure."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import InvalidRequest

MAX_DESCRIBED_IMAGES: Final = 20
MAX_SELECTED_IMAGES: Final = 200
MAX_FILTERS: Final = 50
MAX_FILTER_VALUES: Final = 200
MAX_RESULTS: Final = 200
# EC2's S3 limits a bucket's name to 63 characters; patterns may be a little longer.
MAX_FILTER_VALUE_BYTES: Final = 255
# Texts of which a filter remembers whether it means them.
MAX_VERDICTS: Final = 4096

_IMAGE_ID = re.compile(r"ami-(?:[0-9a-f]{8}|[0-9a-f]{17})")

Order: TypeAlias = tuple[int, int, str]
"""A task's place in a listing: (start time missing, minus start in ns, task id). Newest first."""


def order_of(task: pb.StoreImageTaskResult) -> Order:
    """The task's place in a listing over all targets."""
    if not task.HasField("task_start_time"):
        return (1, 0, task.task_id)
    start = task.task_start_time
    return (0, -(start.seconds * 1_000_000_000 + start.nanos), task.task_id)


def started_at(seconds: float) -> Order:
    """The place of a task that started then; before all others that did."""
    return (0, -round(seconds * 1_000_000_000), "")


class Pattern:
    """Values of a filter, any of which may match.

    Args:
        values: As given, with EC2's wildcards.
    """

    __slots__ = ("_compiled", "_verdicts")

    def __init__(self, values: Iterable[str]) -> None:
        self._compiled = re.compile("|".join(_wildcard(value) for value in values), re.DOTALL)
        # A million tasks have few buckets and fewer states. The worst legal filter takes a third of a
        # millisecond to look at one name, which is to be spent once for each.
        self._verdicts: dict[str, bool] = {}

    def matches(self, text: str) -> bool:
        """Whether any of the values means this text, all of it."""
        verdict = self._verdicts.get(text)
        if verdict is None:
            verdict = self._compiled.fullmatch(text) is not None
            if len(self._verdicts) < MAX_VERDICTS:
                self._verdicts[text] = verdict
        return verdict


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks are meant.

    Attributes:
        image_ids: Tasks of these AMIs; empty means of any.
        newest_only: Only the newest task of each AMI, as EC2 answers image ids.
        patterns: Per filter the member it looks at and the pattern of its values.
    """

    image_ids: frozenset[str] = frozenset()
    newest_only: bool = False
    patterns: tuple[tuple[str, Pattern], ...] = ()

    def matches(self, task: pb.StoreImageTaskResult, *, state: str | None = None) -> bool:
        """Whether the task is meant; `newest_only` is for whoever lists them in order.

        Args:
            task: A task. But for its state, what a selection looks at never changes.
            state: EC2's word for a state that the task was in; None: as it is.
        """
        if self.image_ids and task.ami_id not in self.image_ids:
            return False
        for member, pattern in self.patterns:
            if member == _STATE and state is not None:
                value = state
            elif task.HasField(member):  # type: ignore[arg-type]
                value = getattr(task, member)
            else:
                return False
            if not pattern.matches(value):
                return False
        return True


# The filters EC2 has for this operation, and the member each looks at.
_STATE: Final = "ec2_store_task_state"
_FILTERS: Final[Mapping[str, str]] = {"task-state": _STATE, "bucket": "bucket"}


def describe_selection(image_ids: Sequence[str], filters: Sequence[pb.Filter]) -> Selection:
    """EC2's own rules: with image ids filters are ignored and only the newest task of an AMI counts.

    Raises:
        InvalidRequest: An id or a filter is malformed. Ignored filters must be well formed too.
    """
    _check_image_ids("image_ids", image_ids, MAX_DESCRIBED_IMAGES)
    patterns = _compile_filters("filters", filters)
    if image_ids:
        return Selection(image_ids=frozenset(image_ids), newest_only=True)
    return Selection(patterns=patterns)


def selector_selection(selector: pb.TaskSelector) -> Selection:
    """The gateway's rules: everything given holds together and every task of an AMI counts.

    Raises:
        InvalidRequest: An id or a filter is malformed.
    """
    _check_image_ids("selector.image_ids", selector.image_ids, MAX_SELECTED_IMAGES)
    return Selection(
        image_ids=frozenset(selector.image_ids),
        patterns=_compile_filters("selector.filters", selector.filters),
    )


def _check_image_ids(where: str, image_ids: Sequence[str], most: int) -> None:
    if len(image_ids) > most:
        raise InvalidRequest(where, f"at most {most} image ids, not {len(image_ids)}")
    for index, image_id in enumerate(image_ids):
        if not _IMAGE_ID.fullmatch(image_id):
            raise InvalidRequest(
                f"{where}[{index}]",
                f'"{image_id[:64]}" is not an AMI id: "ami-" and 8 or 17 hexadecimal digits',
                reason="IMAGE_ID_MALFORMED",
            )


def _compile_filters(where: str, filters: Sequence[pb.Filter]) -> tuple[tuple[str, Pattern], ...]:
    if len(filters) > MAX_FILTERS:
        raise InvalidRequest(where, f"at most {MAX_FILTERS} filters, not {len(filters)}")
    if sum(len(each.values) for each in filters) > MAX_FILTER_VALUES:
        raise InvalidRequest(where, f"at most {MAX_FILTER_VALUES} values in all")
    compiled = []
    for index, each in enumerate(filters):
        at = f"{where}[{index}]"
        if each.name not in _FILTERS:
            names = " or ".join(f'"{name}"' for name in _FILTERS)
            raise InvalidRequest(f"{at}.name", f'The filter "{each.name[:64]}" is invalid: {names}')
        if not each.values:
            raise InvalidRequest(f"{at}.values", "at least one value")
        if any(len(value.encode()) > MAX_FILTER_VALUE_BYTES for value in each.values):
            raise InvalidRequest(f"{at}.values", f"at most {MAX_FILTER_VALUE_BYTES} bytes a value")
        compiled.append((_FILTERS[each.name], Pattern(each.values)))
    return tuple(compiled)


def _wildcard(value: str) -> str:
    """EC2's wildcards as a regular expression that never backtracks over an earlier "*"."""
    pieces = [""]  # what stands between the stars
    characters = iter(value)
    for character in characters:
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "."
        else:
            literal = next(characters, "\\") if character == "\\" else character
            pieces[-1] += re.escape(literal)
    first, *rest = pieces
    if not rest:
        return first
    # The leftmost place for a middle piece is always good enough, so it need not be tried again.
    *middle, last = rest
    return first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last


def fingerprint(*parts: object) -> str:
    """A short digest of a question, the same in every process."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=9).hexdigest()
