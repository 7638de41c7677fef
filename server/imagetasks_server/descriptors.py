"""File descriptors: each connection is one, and so is all else that the gateway opens."""

import resource
from typing import Final

# The rest is for EC2, two for each target that is read, for health, metrics and the log.
CALLERS_PART: Final = 0.75


def left() -> int:
    """How many connections of callers this process has descriptors for, once it may have all that it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 2**31 - 1 if hard == resource.RLIM_INFINITY else int(hard * CALLERS_PART)
