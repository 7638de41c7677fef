"""When a follower wakes, on the event loops that the gateway runs on."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from imagetasks_server.follow import Subscription
from imagetasks_server.selection import Selection
from imagetasks_server.ticks import Ticks
from imagetasks_server.view import Revisions


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_follower_that_is_woken_when_its_time_is_over_goes_on(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def follow() -> None:
        subscription = Subscription(Selection(), Revisions(), Ticks(0.01), not_before=0.0)
        for seconds in (0.0, -1.0, 0.0, 0.001):
            # Both at once: woken, and no time left.
            subscription.wake()
            await subscription.moved(seconds)
        # And by time alone.
        await subscription.moved(0.0)
        await subscription.moved(0.001)
        subscription.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(follow(), 10))
