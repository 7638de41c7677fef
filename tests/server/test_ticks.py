"""Sleepers in ticks: never late, at most a tick early, one timer for all of a tick, and none for nobody."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from virtual import VirtualClock, run

from imagetasks_server.follow import Subscription
from imagetasks_server.selection import Selection
from imagetasks_server.ticks import Ticks
from imagetasks_server.view import Revisions

TICK = 0.1
# What a loop's time is exact to.
EXACT = 1e-6


def follower(ticks: Ticks) -> Subscription:
    return Subscription(Selection(), Revisions(), ticks, not_before=0.0)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20))
def test_who_sleeps_wakes_in_the_tick_before_its_time(seconds: list[float]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        ticks = Ticks(TICK)

        async def sleep(seconds: float) -> None:
            subscription = follower(ticks)
            began = clock()
            await subscription.moved(seconds)
            assert seconds - TICK - EXACT <= clock() - began <= seconds + EXACT
            subscription.close()

        await asyncio.gather(*(sleep(each) for each in seconds))
        assert not ticks._ticks

    run(scenario)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20))
def test_who_is_woken_and_sleeps_again_wakes_in_the_tick_before_its_newest_time(seconds: list[float]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        ticks = Ticks(TICK)
        subscription = follower(ticks)
        for each in seconds[:-1]:
            subscription.wake()
            await subscription.moved(each)
        began = clock()
        await subscription.moved(seconds[-1])
        assert seconds[-1] - TICK - EXACT <= clock() - began <= seconds[-1] + EXACT
        subscription.close()
        assert not ticks._ticks

    run(scenario)


def test_a_thousand_who_sleep_as_long_share_a_timer() -> None:
    async def scenario(clock: VirtualClock) -> None:
        del clock
        ticks = Ticks(TICK)
        sleepers = [follower(ticks) for _ in range(1000)]
        sleeping = [asyncio.ensure_future(each.moved(3.05)) for each in sleepers]
        await asyncio.sleep(0)
        assert len(ticks._ticks) == 1
        for each in sleepers[1:]:
            each.close()
        assert len(ticks._ticks) == 1
        sleepers[0].close()
        # The last one takes the timer along.
        assert not ticks._ticks
        for each in sleeping:
            each.cancel()
        await asyncio.wait(sleeping)

    run(scenario)
