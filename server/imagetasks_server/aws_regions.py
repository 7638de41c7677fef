"""One client of EC2 for all Regions of an account: which one a call is for is said beside it.

A client for each Region would cost a millisecond to build, and half as much again with its first call, for
each has caches of its own of what is the same for all. Botocore lets a hook change what makes an endpoint.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Final

# Whose one client asks all Regions.
SERVICE: Final = "ec2"

_REGION: contextvars.ContextVar[str] = contextvars.ContextVar("region")


@contextlib.contextmanager
def in_region(region: str) -> Iterator[None]:
    """What is asked of EC2 within is asked in this Region; else in the client's own."""
    mark = _REGION.set(region)
    try:
        yield
    finally:
        _REGION.reset(mark)


def _before_endpoint_resolution(builtins: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    if region := _REGION.get(None):
        builtins["AWS::Region"] = region
        # What the endpoint says of the signature goes over this.
        context["signing"] = {"region": region}


HOOKS: Final[dict[str, Callable[..., None]]] = {
    f"before-endpoint-resolution.{SERVICE}": _before_endpoint_resolution,
}
