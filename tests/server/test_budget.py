"""A budget never spends what it does not have, and says truly when it will."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagetasks_server.budget import LEAST_FACTOR, PRIVATE_PART, SLOW_SECONDS, Allowance, Budget

ALLOWANCES = st.builds(
    Allowance,
    capacity=st.floats(1, 1000),
    refill=st.floats(0.01, 100),
    usable=st.floats(0.05, 1),
    initial=st.floats(0, 100),
)
STEPS = st.lists(
    st.tuples(st.floats(0, 200), st.integers(0, 20), st.booleans(), st.sampled_from([False] * 5 + [True])),
    max_size=40,
)


class Steered:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(ALLOWANCES, STEPS)
def test_in_every_window_no_more_is_paid_than_capacity_and_refill(
    allowance: Allowance, steps: list[tuple[float, int, bool, bool]]
) -> None:
    clock = Steered()
    budget = Budget(allowance, clock)
    refill = allowance.refill * allowance.usable
    paid: list[float] = []
    private: list[float] = []
    for wait, attempts, is_private, throttled in steps:
        clock.now += wait
        if throttled:
            budget.throttled()
            assert budget.available() == 0
        times = [clock.now for _ in range(attempts) if budget.pay(private=is_private)]
        paid += times
        if is_private:
            private += times
        assert 0 <= budget.available() <= budget.capacity
        assert refill * LEAST_FACTOR <= budget.refill <= refill
    assert_within(paid, budget.capacity, refill)
    assert_within(private, max(1.0, budget.capacity * PRIVATE_PART), refill * PRIVATE_PART)


def assert_within(paid: list[float], capacity: float, refill: float) -> None:
    for first, begin in enumerate(paid):
        for last, end in enumerate(paid[first:], first):
            assert last - first + 1 <= capacity + refill * (end - begin) + 1e-6


@given(ALLOWANCES, STEPS, st.booleans())
def test_the_wait_is_exact(
    allowance: Allowance, steps: list[tuple[float, int, bool, bool]], is_private: bool
) -> None:
    clock = Steered()
    budget = Budget(allowance, clock)
    for wait, attempts, private, throttled in steps:
        clock.now += wait
        if throttled:
            budget.throttled()
        for _ in range(attempts):
            budget.pay(private=private)
    wait = budget.wait(private=is_private)
    if wait > 1e-3:
        clock.now += wait * 0.999
        assert not budget.pay(private=is_private)
        wait *= 0.001
    clock.now += wait + 1e-6
    assert budget.pay(private=is_private)


def test_it_starts_with_its_initial_tokens_not_full() -> None:
    budget = Budget(Allowance(initial=5), Steered())
    assert [budget.pay() for _ in range(6)] == [True] * 5 + [False]


def test_a_part_of_the_bucket_is_left_to_others() -> None:
    budget = Budget(Allowance(capacity=50, refill=0.5, usable=0.8, initial=50), Steered())
    assert (budget.capacity, budget.refill) == (40, 0.4)
    assert sum(budget.pay() for _ in range(100)) == 40


def test_private_questions_leave_three_quarters_to_reads() -> None:
    budget = Budget(Allowance(capacity=50, refill=0.5, usable=0.8, initial=40), Steered())
    assert sum(budget.pay(private=True) for _ in range(100)) == 10
    assert sum(budget.pay() for _ in range(100)) == 30


def test_what_private_questions_saved_up_goes_with_the_rest() -> None:
    clock = Steered()
    budget = Budget(Allowance(capacity=50, refill=0.5, usable=0.8, initial=40), clock)
    while budget.pay():
        pass
    # From now on a token comes each 2.5 s, whoever is first to take it; of forty, ten are theirs.
    private = 0
    for _ in range(40):
        clock.now += 2.5
        private += budget.pay(private=True)
        budget.pay()
    assert private == pytest.approx(10, abs=1)


def halvings() -> Iterator[float]:
    factor = 1.0
    while factor > LEAST_FACTOR:
        factor /= 2
        yield factor


def test_each_throttle_halves_the_rate_to_an_eighth_and_time_doubles_it_again() -> None:
    clock = Steered()
    budget = Budget(Allowance(usable=1.0), clock)
    for factor in halvings():
        budget.throttled()
        assert budget.refill == 0.5 * factor
    budget.throttled()
    assert budget.refill == 0.5 * LEAST_FACTOR
    assert budget.throttles == 4
    for factor in reversed(list(halvings())):
        assert budget.refill == 0.5 * factor
        clock.now += SLOW_SECONDS
    assert budget.refill == 0.5


def test_after_a_throttle_tokens_come_at_half_the_rate() -> None:
    clock = Steered()
    budget = Budget(Allowance(refill=0.5, usable=1.0, initial=50), clock)
    budget.throttled()
    assert budget.wait() == pytest.approx(4.0)
    clock.now += 4.0
    assert budget.pay()
    clock.now += SLOW_SECONDS * 10
    assert budget.available() == budget.capacity
