"""EC2's words for what the gateway refuses before EC2 is asked.

The gateway checks a request itself and says which field is wrong. Which of several faults EC2 would name,
and how, is told from the request, in the order in which EC2 is taken to check. Pure.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_RESULTS = 200
_MAX_IMAGE_IDS = 20
_MAX_FILTERS = 50
_MAX_FILTER_VALUES = 200
_FILTERS = ("bucket", "task-state")
_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")

TOKEN_REFUSED = (
    "InvalidPaginationToken",
    "The specified pagination token is not valid or is expired.",
)

# The gateway's own refusals that have a meaning at EC2: reason or gRPC code to EC2's code.
GATEWAY_CODES = {
    "NO_TARGETS": "UnauthorizedOperation",
    "UNAUTHENTICATED": "AuthFailure",
    "BUDGET_EXHAUSTED": "RequestLimitExceeded",
    "RATE_LIMITED": "RequestLimitExceeded",
    "TOO_MANY_CALLS": "RequestLimitExceeded",
    "TOO_MANY_STREAMS": "RequestLimitExceeded",
    "OVERLOADED": "RequestLimitExceeded",
    "INVALID_ARGUMENT": "InvalidParameterValue",
    "DRAINING": "Unavailable",
    "INTERNAL": "InternalError",
}


def of_request(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """EC2's code and text for the first fault of a request; None if none is seen.

    Args:
        parameters: As sent, by the names of EC2's model, with the types that the model gives them.
    """
    return next(_faults(parameters), None)


def _faults(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    image_ids = parameters.get("ImageIds") or ()
    size = parameters.get("MaxResults")
    if size is not None and image_ids:
        yield (
            "InvalidParameterCombination",
            "The parameter imageIds cannot be used with the parameter maxResults",
        )
    if size is not None and not 1 <= size <= _MAX_RESULTS:
        expected = f"Expecting a value between 1 and {_MAX_RESULTS}."
        yield "InvalidParameterValue", f"Value ( {size} ) for parameter maxResults is invalid. {expected}"
    if len(image_ids) > _MAX_IMAGE_IDS:
        yield "InvalidParameterValue", f"The maximum number of image IDs in a request is {_MAX_IMAGE_IDS}"
    for image_id in image_ids:
        if not _IMAGE_ID.fullmatch(image_id):
            yield "InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")'
    yield from _filter_faults(parameters.get("Filters") or ())


def _filter_faults(filters: Any) -> Iterator[tuple[str, str]]:
    for count, most, what in (
        (len(filters), _MAX_FILTERS, "filters"),
        (sum(len(each.get("Values", ())) for each in filters), _MAX_FILTER_VALUES, "filter values"),
    ):
        if count > most:
            yield (
                "FilterLimitExceeded",
                f"The maximum number of {what} specified on a single call is {most}",
            )
    for each in filters:
        if each.get("Name") not in _FILTERS:
            yield "InvalidParameterValue", f"The filter '{each.get('Name') or 'null'}' is invalid"


def in_order(message: str, image_ids: list[str]) -> str:
    """The text about unknown AMIs, with their ids in the order of the request."""
    found = re.search(r"'\[(.*)\]'", message)
    if found is None:
        return message
    unknown = set(found[1].split(", "))
    listed = ", ".join(each for each in dict.fromkeys(image_ids) if each in unknown)
    return f"{message[: found.start(1)]}{listed}{message[found.end(1) :]}"
