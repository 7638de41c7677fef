"""The time that tests own."""

import asyncio

import pytest
from virtual import Deadlock, VirtualClock, run, settle


def test_time_jumps_to_the_next_timer() -> None:
    async def scenario(clock: VirtualClock) -> list[float]:
        began = clock()
        times = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            times.append(clock() - began)

        await asyncio.gather(sleeper(3600), sleeper(1), sleeper(86400 * 40))
        return times

    assert run(scenario) == pytest.approx([1, 3600, 86400 * 40])


def test_time_stands_still_while_something_can_run() -> None:
    async def scenario(clock: VirtualClock) -> None:
        began = clock()
        asyncio.get_running_loop().call_later(1, pytest.fail)
        await settle(100)
        assert clock() == began

    run(scenario)


def test_a_clock_that_is_moved_makes_timers_due() -> None:
    async def scenario(clock: VirtualClock) -> bool:
        sleeper = asyncio.create_task(asyncio.sleep(60))
        await settle()
        clock.advance(60)
        await settle()
        return sleeper.done()

    assert run(scenario)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def scenario(_: VirtualClock) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(scenario)


def test_a_task_left_behind_fails() -> None:
    async def scenario(_: VirtualClock) -> None:
        task = asyncio.create_task(asyncio.sleep(1000), name="forgotten")
        await settle()
        assert not task.done()

    with pytest.raises(AssertionError, match="forgotten"):
        run(scenario)
