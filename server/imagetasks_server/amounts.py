"""Numbers that settings take. Each has an end on both sides, so that whatever counts with it can.

What is meant never to happen, or always, does so at the end: a year is never, for a process. Beyond it there
are durations that no message can say, timers that no loop can set, and numbers that C-core takes for others.
"""

from typing import Annotated, Final

from pydantic import Field

_YEAR: Final = 365 * 86400.0
# The largest that C-core takes.
_INT32: Final = 2**31 - 1

Seconds = Annotated[float, Field(ge=0.001, le=_YEAR)]
SecondsOrNone = Annotated[float, Field(ge=0, le=_YEAR)]
Count = Annotated[int, Field(ge=1, le=_INT32)]
Bytes = Annotated[int, Field(ge=0, le=2**40)]
# From one a day.
PerSecond = Annotated[float, Field(ge=1 / 86400, le=1e6)]
