"""What happens in a random world, and when.

A schedule says whether the budget is tight, and lists (what, number, seconds): what happens, to which of
those it may happen to, and how long nothing else does after that.
"""

import random
from typing import Final, NamedTuple

from hypothesis import strategies as st


class Schedule(NamedTuple):
    """All that happens."""

    tight: bool
    steps: list[tuple[str, int, float]]


# Of schedules, drawn by a seed.
TIGHT_PART: Final = 0.3
# Some are more likely than others.
OFTEN: Final = ("progress", "end", "join", "resume", "leave")
WHAT: Final = (
    *OFTEN,
    "start",
    "progress",
    "end",
    "join",
    "resume",
    "start old",
    "go",
    "hide",
    "show",
    "throttle",
    "fail",
    "hang",
    "recover",
    "resume badly",
    "stall",
    "read on",
    "fall behind",
    "leave",
    "slow",
    "permit",
    "lose sight",
    "revoke",
    "join briefly",
    "describe",
    "describe twice",
    "wait",
    "accounts",
    "regions",
    "cannot find out",
    "drain",
    "kill",
)
SECONDS: Final = (0.0, 1.0, 6.0, 6.0, 11.0, 40.0)
SCHEDULES: Final = st.builds(
    Schedule,
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(WHAT), st.integers(0, 99), st.sampled_from(SECONDS)),
        min_size=3,
        max_size=20,
    ),
)


def schedule_of(seed: int) -> Schedule:
    """One schedule, the same each time."""
    draw = random.Random(seed)
    steps = [
        (draw.choice(WHAT), draw.randrange(100), draw.choice(SECONDS)) for _ in range(draw.randint(3, 20))
    ]
    return Schedule(draw.random() < TIGHT_PART, steps)
