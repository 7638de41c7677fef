"""Runs a random world by its schedule, on virtual time, and records it."""

from typing import Final
from unittest import mock

from history import History, recorded
from rules import settings
from schedules import Schedule
from virtual import VirtualClock, run
from watch_stage import drawn_from
from world import World

from imagetasks_server import line
from imagetasks_server.view import View

# So that groups are split.
SMALL_MESSAGE: Final = 500
# So that some come too late to be told what has gone.
TOMBSTONES: Final = 60.0


def play(schedule: Schedule) -> History:
    """Run it, and tell what happened."""

    async def scenario(clock: VirtualClock) -> History:
        world = World(clock, settings(tight=schedule.tight))
        with (
            recorded(world.history, world.now),
            mock.patch.object(line, "MAX_MESSAGE_BYTES", SMALL_MESSAGE),
            mock.patch.dict(View.__init__.__kwdefaults__, keep_tombstones_for=TOMBSTONES),
        ):
            # Of these two nobody would notice if they were one.
            world.subscribers[0].join("", 0)
            world.subscribers[4].join("", 0)
            for what, number, seconds in schedule.steps:
                await world.happen(what, number)
                await world.rest(seconds)
            await world.end()
        return world.history

    # A schedule has the same jitter each time.
    with drawn_from(repr(schedule)):
        return run(scenario, debug=False)
