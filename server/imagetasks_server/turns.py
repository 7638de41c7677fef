"""The loop's turns, shared out: one heavy piece of work in each.

34 Regions may answer in the same moment. Each answer takes a few milliseconds to decode, and the loop
runs whatever is ready in one turn: everybody else would wait for all of them.
"""

import asyncio


class Turns:
    """Whoever is about to work for long takes one."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self) -> None:
        """Wait for a turn of the loop in which nobody else works for long; go on without a pause."""
        await self._lock.acquire()
        # Not before this turn of the loop is over.
        asyncio.get_running_loop().call_soon(self._lock.release)
