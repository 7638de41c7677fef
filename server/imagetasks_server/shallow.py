"""How little must be read of a target whose list is known. Pure.

EC2 answers newest first and finished tasks do not change, so a refresh must see only the tasks that
started since the last one and those that have not ended. It reads pages from the top down to a
boundary. Stragglers, unfinished tasks deep in the list, are cheaper asked by image id, 20 to a call;
but EC2 then answers with the newest task of an AMI only, so a straggler whose AMI was stored again
since is reached by pages alone.
"""

import bisect
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from imagetasks_server.selection import Order, started_at
from imagetasks_server.view import LATE_SECONDS, Entry, View

PAGE_SIZE: Final = 200
IDS_PER_CALL: Final = 20


@dataclass(frozen=True, slots=True)
class Depth:
    """How far down the pages of a refresh go.

    Attributes:
        boundary: Every task at or above this place must be listed.
        calls: What the refresh costs if no task has started since: pages and calls by image id.
    """

    boundary: Order
    calls: int


def depth(view: View, unaskable: AbstractSet[str] = frozenset(), page_size: int = PAGE_SIZE) -> Depth:
    """The cheapest way to refresh a view that has been read in full.

    Args:
        view: What is known.
        unaskable: AMIs that EC2 no longer knows, so that asking for them is an error.
        page_size: Tasks on a page; EC2 may give fewer than were asked for.
    """
    assert view.read_time is not None
    # Started since, or listed late.
    top = started_at(view.read_time - LATE_SECONDS)
    best: Depth | None = None
    unfinished = view.unfinished()
    orders = [entry.order for entry in unfinished]
    # All by id but those that cannot be; then one more by page each time.
    reached = max(
        (n for n, entry in enumerate(unfinished, 1) if not _askable(view, entry, unaskable)), default=0
    )
    for by_page in range(reached, len(unfinished) + 1):
        boundary = max(top, unfinished[by_page - 1].order) if by_page else top
        pages = view.above(boundary) // page_size + 1
        deeper = len(unfinished) - bisect.bisect_right(orders, boundary)
        found = Depth(boundary, pages + -(-deeper // IDS_PER_CALL))
        if best is None or found.calls < best.calls:
            best = found
    assert best is not None
    return best


def is_past(task_order: Order, boundary: Order) -> bool:
    """Whether a page that ends with this task has listed everything down to the boundary.

    Only the start time counts: EC2's order among tasks that started together is its own.
    """
    return task_order[:2] > boundary[:2]


def stragglers(view: View, started: float, unaskable: AbstractSet[str]) -> tuple[list[Entry], list[Entry]]:
    """Unfinished tasks that a refresh which began then has not listed: by id, and only by pages."""
    left = [entry for entry in view.unfinished() if entry.listed_at < started]
    by_id = [entry for entry in left if _askable(view, entry, unaskable)]
    return by_id, [entry for entry in left if not _askable(view, entry, unaskable)]


def _askable(view: View, entry: Entry, unaskable: AbstractSet[str]) -> bool:
    image_id = entry.task.ami_id
    return bool(image_id) and image_id not in unaskable and view.is_newest_of_image(entry)
