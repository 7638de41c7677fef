"""The AWS CLI and ours over generated worlds and command lines."""

from dataclasses import dataclass

import generated
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import Stage

# Each is four command lines, and what they are resumed with. A few hundred take ten minutes; a failure is
# shrunk by running some of them again.
EXAMPLES = 30
SECONDS = 600
COLUMNS = st.one_of(st.none(), st.none(), st.integers(10, 260))


@dataclass(frozen=True)
class Asked:
    """A world, and four command lines with the columns of their terminals."""

    world: generated.World
    lines: list[tuple[list[str], int | None]]


@st.composite
def questions(draw: st.DrawFn) -> Asked:
    world = draw(generated.WORLDS)
    lines = st.tuples(generated.command_lines(world.count), COLUMNS)
    return Asked(world, [draw(lines) for _ in range(4)])


@pytest.mark.timeout(SECONDS)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(questions())
def test_any_command_line_on_any_world_ends_the_same(stage: Stage, asked: Asked) -> None:
    pair = stage.pair(tasks=asked.world.tasks(), images=["ami-0000000a"])
    for words, columns in asked.lines:
        pair.walk(words, columns, steps=3)
