"""DescribeRegions as EC2 answers it: moto lists every Region there is, whatever AllRegions says."""

from collections.abc import Callable, Mapping
from typing import Any

from imagetasks_sandbox import refusal
from imagetasks_sandbox.listing import wildcard
from imagetasks_sandbox.world import ENABLED, REGIONS

_FILTERS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "endpoint": lambda region: region["regionEndpoint"],
    "opt-in-status": lambda region: region["optInStatus"],
    "region-name": lambda region: region["regionName"],
}


def describe(parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """The Regions by their names on the wire: the enabled ones, or those named, or with AllRegions all.

    Args:
        parameters: As EC2's model names them: RegionNames, AllRegions, Filters, DryRun.

    Raises:
        Refusal: InvalidParameterValue for an unknown Region or filter; DryRunOperation.
    """
    names = parameters.get("RegionNames", ())
    unknown = [name for name in names if name not in REGIONS]
    if unknown:
        raise refusal.invalid_value(f"Invalid region names [{', '.join(unknown)}]")
    for each in parameters.get("Filters", ()):
        if each.get("Name") not in _FILTERS:
            raise refusal.filter_invalid(each.get("Name"))
    if parameters.get("DryRun"):
        raise refusal.dry_run()
    regions = [
        {
            "regionName": name,
            "regionEndpoint": f"ec2.{name}.amazonaws.com",
            "optInStatus": status.value,
        }
        for name, status in REGIONS.items()
        if (name in names if names else parameters.get("AllRegions") or name in ENABLED)
    ]
    return [
        region for region in regions if all(_holds(each, region) for each in parameters.get("Filters", ()))
    ]


def _holds(condition: Mapping[str, Any], region: Mapping[str, str]) -> bool:
    value = _FILTERS[condition["Name"]](region)
    return any(wildcard(pattern).fullmatch(value) for pattern in condition.get("Values", ()))
