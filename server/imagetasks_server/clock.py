"""The one axis of time.

A clock is a function that returns unix time in seconds and never steps back. Everything that needs
the time is given one; tests give their own.
"""

import time
from collections.abc import Callable
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

Clock: TypeAlias = Callable[[], float]


def steady_clock() -> Clock:
    """Unix time as of now, carried on by the monotonic clock: a corrected system clock moves nothing."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


def timestamp(seconds: float) -> Timestamp:
    """Unix time in seconds as the protobuf message, to the microsecond."""
    whole, fraction = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=fraction * 1000)
