"""A budget never spends what it does not have, and says truly when it will."""

from hypothesis import given
from hypothesis import strategies as st

from imagetasks_server.budget import Allowance, Budget

ALLOWANCES = st.builds(
    Allowance,
    capacity=st.floats(1, 1000),
    refill=st.floats(0.01, 100),
    usable=st.floats(0.05, 1),
    initial=st.floats(0, 100),
)


@given(ALLOWANCES, st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20)), max_size=60))
def test_in_every_window_no_more_is_paid_than_capacity_and_refill(
    allowance: Allowance, steps: list[tuple[float, int]]
) -> None:
    now = 1_000.0
    budget = Budget(allowance, lambda: now)
    paid: list[float] = []
    for wait, attempts in steps:
        now += wait
        paid += [now for _ in range(attempts) if budget.pay()]
        assert 0 <= budget.available() <= budget.capacity
    for first, begin in enumerate(paid):
        for last in range(first, len(paid)):
            window = paid[last] - begin
            assert last - first + 1 <= budget.capacity + budget.refill * window + 1e-6


@given(ALLOWANCES, st.integers(0, 60), st.floats(0, 3))
def test_the_wait_is_exact(allowance: Allowance, spend: int, idle: float) -> None:
    now = 0.0
    budget = Budget(allowance, lambda: now)
    for _ in range(spend):
        budget.pay()
    now += idle
    wait = budget.wait()
    if wait > 1e-3:
        now += wait - 1e-3 / budget.refill if wait > 1e-3 / budget.refill else 0.0
        assert not budget.pay()
        now = idle
    now += wait
    assert budget.pay()


def test_it_starts_with_its_initial_tokens_not_full() -> None:
    budget = Budget(Allowance(initial=5), lambda: 0.0)
    assert [budget.pay() for _ in range(6)] == [True] * 5 + [False]


def test_a_part_of_the_bucket_is_left_to_others() -> None:
    budget = Budget(Allowance(capacity=50, refill=0.5, usable=0.8, initial=50), lambda: 0.0)
    assert (budget.capacity, budget.refill) == (40, 0.4)
    assert sum(budget.pay() for _ in range(100)) == 40
