"""Random worlds, watched: every guarantee holds in every history, and each validator catches its mutant.

A failing history is replayed by what hypothesis prints: the falsifying schedule itself, `@reproduce_failure`,
or `pytest tests/robustness --hypothesis-seed=NUMBER`. More of them:

    IMAGETASKS_HISTORIES=5000 pytest -n 2 tests/robustness -k guarantee
"""

import os

import pytest
from hypothesis import given, settings
from mutants import MUTANTS, Mutant
from playing import play
from schedules import SCHEDULES, Schedule, schedule_of
from validators import VALIDATORS

HISTORIES = int(os.environ.get("IMAGETASKS_HISTORIES", "200"))
# So that several processes can share them.
PARTS = 4
# A mutant that this many histories do not show would not be worth its name.
ENOUGH = 300


@pytest.mark.timeout(60 + HISTORIES)
@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=HISTORIES // PARTS)
@given(schedule=SCHEDULES)
def test_every_guarantee_holds(part: int, schedule: Schedule) -> None:
    del part
    history = play(schedule)
    violations = [f"{each.__name__}: {text}" for each in VALIDATORS for text in each(history)]
    assert not violations, "\n".join(violations[:10])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_own_validator_catches_a_mutant(mutant: Mutant) -> None:
    for seed in range(ENOUGH):
        with mutant.seeded():
            history = play(schedule_of(seed))
        if next(iter(mutant.validator(history)), None) is not None:
            return
    pytest.fail(f"not one of {ENOUGH} histories shows it")
