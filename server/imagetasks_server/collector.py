"""Python's garbage collector, as a process wants it that answers many at once."""

import gc
from typing import Final

# Objects that may come, more than go, before the newest are looked at; Python's own number is 700. A change
# told to a thousand watchers has tens of thousands of them under way, and each look at them is time that the
# watchers wait. More: looks are rarer, and take longer; garbage in cycles waits longer too, 10 MB of it.
NEWEST: Final = 50_000


def settle() -> None:
    """What is there by now stays as long as the process: it is never looked at again.

    Each full look at it would hold the loop for 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEWEST, *gc.get_threshold()[1:])
