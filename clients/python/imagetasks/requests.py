"""From Python values to the contract's requests: what both clients take means the same."""

import enum
from collections.abc import Iterable, Mapping
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from imagetasks.v1 import store_image_tasks_pb2 as pb

# A mapping from filter name to values, or the contract's own messages.
Filters = Mapping[str, Iterable[str]] | Iterable[pb.Filter]
# Seconds or a timedelta.
Seconds = float | timedelta


class Default(enum.Enum):
    """Marks an argument left out where None has a meaning of its own."""

    TIMEOUT = "the client's own timeout"


Timeout = Seconds | Default | None

DEFAULT_TIMEOUT = 60.0


def describe(
    *,
    image_ids: Iterable[str] = (),
    filters: Filters = (),
    accounts: Iterable[str],
    regions: Iterable[str],
    max_age: Seconds | None = None,
    forbid_stale: bool = False,
    page_size: int | None = None,
    dry_run: bool = False,
) -> pb.DescribeStoreImageTasksRequest:
    """The request for a listing's first page."""
    return pb.DescribeStoreImageTasksRequest(
        image_ids=_strings("image_ids", image_ids),
        filters=_filters(filters),
        accounts=_strings("accounts", accounts),
        regions=_strings("regions", regions),
        max_age=_duration(max_age),
        forbid_stale=forbid_stale,
        max_results=page_size,
        dry_run=dry_run or None,
    )


def stream(
    *,
    image_ids: Iterable[str],
    filters: Filters,
    accounts: Iterable[str],
    regions: Iterable[str],
    max_age: Seconds | None,
    forbid_stale: bool,
) -> pb.StreamStoreImageTasksRequest:
    """The request for a stream."""
    return pb.StreamStoreImageTasksRequest(
        selector=selector(image_ids=image_ids, filters=filters, accounts=accounts, regions=regions),
        max_age=_duration(max_age),
        forbid_stale=forbid_stale,
    )


def selector(
    *,
    image_ids: Iterable[str],
    filters: Filters,
    accounts: Iterable[str],
    regions: Iterable[str],
) -> pb.TaskSelector:
    """Which tasks a stream, a watch or a wait means."""
    return pb.TaskSelector(
        accounts=_strings("accounts", accounts),
        regions=_strings("regions", regions),
        image_ids=_strings("image_ids", image_ids),
        filters=_filters(filters),
    )


def targets(*, accounts: Iterable[str], regions: Iterable[str]) -> pb.ListTargetsRequest:
    """The request for targets."""
    return pb.ListTargetsRequest(
        accounts=_strings("accounts", accounts),
        regions=_strings("regions", regions),
    )


def deadline(timeout: Timeout, default: Seconds | None) -> float | None:
    """A call's timeout in seconds as gRPC takes it; None is no limit."""
    chosen = default if isinstance(timeout, Default) else timeout
    if chosen is None:
        return None
    return _seconds(chosen) or None


def patience(timeout: Seconds | None) -> float | None:
    """A wait's whole time in seconds; None is no limit, and 0 looks once."""
    return None if timeout is None else _seconds(timeout)


def _seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _duration(value: Seconds | None) -> Duration | None:
    if value is None:
        return None
    duration = Duration()
    duration.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return duration


def _strings(name: str, values: Iterable[str]) -> list[str]:
    # A lone string is an iterable of its characters: never what was meant.
    if isinstance(values, str):
        raise TypeError(f"{name} takes several strings, not the single string {values!r}")
    return list(values)


def _filters(filters: Filters) -> list[pb.Filter]:
    if isinstance(filters, Mapping):
        return [pb.Filter(name=name, values=_strings(name, values)) for name, values in filters.items()]
    return list(filters)
