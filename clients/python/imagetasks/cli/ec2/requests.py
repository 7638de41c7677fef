"""From EC2's parameters to the contract's request."""

import re
from typing import Any

from imagetasks.cli.ec2.scope import Scope
from imagetasks.v1 import store_image_tasks_pb2 as pb

_MOST = 2**31 - 1
_LONGEST_PATTERN = 255
# No answer in XML can hold it, so nothing matches it.
_UNMATCHED = "\0"


def describe(
    parameters: dict[str, Any], scope: Scope, unasked_page: int | None
) -> pb.DescribeStoreImageTasksRequest:
    """One page's request.

    Args:
        parameters: As EC2's model names and types them.
        scope: The targets and the freshness.
        unasked_page: Tasks of a page where MaxResults is absent; None: as many as the gateway puts into one.
    """
    image_ids = parameters.get("ImageIds", ())
    request = pb.DescribeStoreImageTasksRequest(
        image_ids=image_ids,
        filters=[_filter(each) for each in parameters.get("Filters", ())],
        next_token=parameters.get("NextToken"),
        dry_run=parameters.get("DryRun"),
        accounts=scope.accounts,
        regions=scope.regions,
        forbid_stale=scope.forbid_stale,
    )
    if "MaxResults" in parameters:
        request.max_results = min(parameters["MaxResults"], _MOST)
    elif not image_ids and unasked_page is not None:
        request.max_results = unasked_page
    if scope.max_age is not None:
        request.max_age.FromNanoseconds(round(scope.max_age * 1e9))
    return request


def _filter(given: dict[str, Any]) -> pb.Filter:
    # At EC2 a filter without values holds for no task; the contract wants one value at least.
    values = given.get("Values") or [_UNMATCHED]
    return pb.Filter(name=given.get("Name"), values=[_pattern(value) for value in values])


def _pattern(value: str) -> str:
    """The value in the length that the gateway takes; what stays longer can match no bucket's name."""
    if len(value) <= _LONGEST_PATTERN:
        return value
    short = re.sub(r"(\\.)|\*+", lambda found: found[1] or "*", value, flags=re.DOTALL)
    return short if len(short) <= _LONGEST_PATTERN else _UNMATCHED
