"""What gateways spend that end and start again, one or several at once, against EC2's own bucket. Pure.

The law: in every window, at most the usable part of (capacity + refill x window), and `initial` for each
start within. EC2 throttles nobody as long as that fits into the whole of its bucket.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from fake_ec2 import FakeWorld
from hypothesis import given
from hypothesis import strategies as st

from canned.throttle import Bucket
from imagetasks_server.assembly import assemble
from imagetasks_server.budget import Budget
from imagetasks_server.config import Settings

CAPACITY, REFILL, RESERVE, INITIAL = 50.0, 0.5, 0.2, 5.0
USABLE = 1 - RESERVE
# Seconds that Kubernetes waits before each restart of a container, then 300 each time.
KUBERNETES = (0, 10, 20, 40, 80, 160, 300, 300)
# Seconds in which a bucket is surely full.
RESTED = 1000.0


@dataclass(frozen=True)
class Life:
    """One run of one process.

    Attributes:
        start: When it begins.
        end: When it dies.
        asks_from: From when on it spends whatever it can; before it saves.
    """

    start: float
    end: float
    asks_from: float


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock, replicas: int) -> Budget:
    """A new process's, as `main` builds it."""
    settings = Settings(
        accounts=[{"name": "main"}],
        budget={
            "capacity": CAPACITY,
            "refill": REFILL,
            "reserve": RESERVE,
            "initial": INITIAL,
            "share": 1 / replicas,
        },
    )
    world = FakeWorld(clock)
    return assemble(settings, world.accounts, clock).registry.of(world.ec2().target).budget


def spent(lives: Sequence[Sequence[Life]]) -> list[float]:
    """When EC2 is called by replicas that each live such lives, and spend all they have."""
    clock = Clock()
    paid: list[float] = []
    # When it wakes, a number to tell equals apart, and its budget.
    alive: list[tuple[float, int, Life, Budget | None]] = [
        (life.start, number, life, None) for number, life in enumerate(itertools.chain(*lives))
    ]
    heapq.heapify(alive)
    while alive:
        clock.now, number, life, has = heapq.heappop(alive)
        has = has or budget(clock, len(lives))
        if clock.now >= life.asks_from and has.pay():
            paid.append(clock.now)
        wait = max(life.asks_from - clock.now, has.wait())
        if clock.now + wait < life.end:
            heapq.heappush(alive, (clock.now + wait, number, life, has))
    return paid


def throttled(paid: Sequence[float]) -> int:
    """How many of the calls EC2 refuses, which was rested."""
    bucket = Bucket(CAPACITY, REFILL, -RESTED)
    return sum(not bucket.take(at) for at in paid)


def in_a_loop(pauses: Sequence[float], *, lasting: float, after_a_burst: bool) -> list[Life]:
    """A process that crashes again and again; before that it may have spent all it had saved."""
    lives = [Life(0, RESTED, RESTED - 1)] if after_a_burst else []
    at = lives[-1].end if lives else 0.0
    for pause in pauses:
        lives.append(Life(at + pause, at + pause + lasting, 0))
        at = lives[-1].end
    return lives


@st.composite
def replicas(draw: st.DrawFn) -> list[list[Life]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        at, lives = 0.0, []
        for _ in range(draw(st.integers(1, 6))):
            start = at + draw(st.sampled_from([0.0, 0.0, 0.1, 5, 100]))
            asks_from = start + draw(st.sampled_from([0.0, 0.0, 3, 200]))
            at = asks_from + draw(st.sampled_from([0.001, 1, 10, 60]))
            lives.append(Life(start, at, asks_from))
        found.append(lives)
    return found


@given(replicas())
def test_in_every_window_the_usable_part_is_kept_to_but_for_what_each_start_brings(
    lives: list[list[Life]],
) -> None:
    initial = max(1.0, INITIAL / len(lives))
    paid = spent(lives)
    starts = [life.start for each in lives for life in each]
    for first, begin in enumerate(paid):
        for last, end in enumerate(paid[first:], first):
            within = sum(begin <= start <= end for start in starts)
            most = USABLE * (CAPACITY + REFILL * (end - begin)) + initial * within
            assert last - first + 1 <= most + 1e-6


@pytest.mark.parametrize("after_a_burst", [True, False])
@pytest.mark.parametrize("lasting", [0.001, 1, 30])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_replicas_that_crash_together_and_are_started_again_by_kubernetes_are_never_throttled(
    count: int, lasting: float, after_a_burst: bool
) -> None:
    paid = spent([in_a_loop(KUBERNETES, lasting=lasting, after_a_burst=after_a_burst)] * count)
    assert len(paid) >= count * len(KUBERNETES)
    assert throttled(paid) == 0


def test_what_no_budget_in_memory_can_hold_is_a_loop_without_pauses() -> None:
    # Nobody tells a new process what the ones before have spent: each spends its initial tokens.
    most = int(CAPACITY / INITIAL)
    assert throttled(spent([in_a_loop([0] * most, lasting=0.001, after_a_burst=False)])) == 0
    assert throttled(spent([in_a_loop([0] * (most + 1), lasting=0.001, after_a_burst=False)])) > 0
    # A start each 50 s can go on for ever: 5 and 0.4 a second are what EC2 refills.
    sustained = INITIAL / (REFILL * RESERVE)
    assert throttled(spent([in_a_loop([0] * 100, lasting=sustained, after_a_burst=False)])) == 0


def test_a_rollout_of_all_replicas_costs_what_a_start_of_one_costs() -> None:
    for count in (1, 2, 4, 5):
        assert len(spent([[Life(0, 0.001, 0)]] * count)) <= INITIAL
