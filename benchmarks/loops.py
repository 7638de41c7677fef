"""Programs without a gateway, in virtual time: a boto3 loop for each caller, and the stock waiter for each.

Only what EC2's limit makes of their calls is simulated: an allowed call is answered at once.
"""

import asyncio
import random
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/server"))

from frame import shown
from virtual import VirtualClock, run

from canned.throttle import Bucket

SECONDS: Final = 600.0
# What a caller does between two looks, and the stock waiter's own delay.
EVERY: Final = 5.0
WAITER_LOOKS: Final = 40
PAGE: Final = 200
# Boto3's default, "legacy": a call and four more, after a random part of 1, 2, 4 and 8 seconds.
ATTEMPTS: Final = 5
# So many show within a minute what becomes of them.
MANY: Final = 1000
SHORT: Final = 60.0


@dataclass
class Asked:
    """What EC2 was asked.

    Attributes:
        granted: Calls that cost a token.
        throttled: Calls that were refused.
        answers: Times that a caller had all it asked for.
    """

    granted: int = 0
    throttled: int = 0
    answers: int = 0


@dataclass
class Peers:
    """What came of callers without a gateway.

    Attributes:
        count: How many there are.
        asked: What EC2 was asked.
        late: Seconds from the end of a task to those who saw it.
    """

    count: int
    asked: Asked = field(default_factory=Asked)
    late: list[float] = field(default_factory=list)

    @property
    def cost(self) -> str:
        """Tokens of an answer, and what was refused."""
        calls = self.asked.granted + self.asked.throttled
        of = (
            shown(self.asked.granted / self.asked.answers, "tokens")
            if self.asked.answers
            else "none ever whole"
        )
        return f"{of}, {self.asked.throttled / calls:.0%} of calls throttled"

    @property
    def lateness(self) -> str:
        """The median of those who saw it, and how many did not."""
        never = 1 - len(self.late) / self.count
        middle = shown(statistics.median(self.late), "s") if self.late else "nobody"
        return middle + (f", {never:.0%} never" if never > 0.005 else "")


class _Ec2:
    """A limit, and what it made of the calls."""

    def __init__(self, clock: VirtualClock, asked: Asked, chance: random.Random) -> None:
        self._clock = clock
        self._asked = asked
        self._chance = chance
        self._bucket = Bucket(50, 0.5, clock())

    async def call(self) -> bool:
        """One call as boto3 makes it; False: throttled to the end."""
        for attempt in range(ATTEMPTS):
            if self._bucket.take(self._clock()):
                self._asked.granted += 1
                return True
            self._asked.throttled += 1
            if attempt < ATTEMPTS - 1:
                await asyncio.sleep(self._chance.random() * 2**attempt)
        return False


def polling(tasks: int, callers: int) -> Peers:
    """Everybody lists everything, again and again; a task ends after half of the time."""
    found, seconds = Peers(callers), SECONDS if callers <= MANY else SHORT
    pages = max(1, -(-tasks // PAGE))

    async def scenario(clock: VirtualClock) -> None:
        chance = random.Random(1)
        ec2, began = _Ec2(clock, found.asked, chance), clock()
        ended = began + seconds / 2

        async def loop() -> None:
            seen = False
            await asyncio.sleep(chance.random() * EVERY)
            while clock() < began + seconds:
                at = clock()
                if await _all(ec2, pages):
                    found.asked.answers += 1
                    if at >= ended and not seen:
                        seen = True
                        found.late.append(clock() - ended)
                await asyncio.sleep(max(0.0, EVERY - (clock() - at)))

        await asyncio.gather(*(loop() for _ in range(callers)))

    run(scenario, debug=False)
    return found


async def _all(ec2: _Ec2, pages: int) -> bool:
    for _ in range(pages):
        if not await ec2.call():
            return False
    return True


def waiting(callers: int) -> Peers:
    """Everybody waits for one task, which ends after a minute and a half; who is throttled, fails."""
    found = Peers(callers)

    async def scenario(clock: VirtualClock) -> None:
        chance = random.Random(1)
        ec2 = _Ec2(clock, found.asked, chance)
        ended = clock() + 90.0 + chance.random() * EVERY

        async def wait() -> None:
            await asyncio.sleep(chance.random() * EVERY)
            for _ in range(WAITER_LOOKS):
                if not await ec2.call():
                    return
                found.asked.answers += 1
                if clock() >= ended:
                    found.late.append(clock() - ended)
                    return
                await asyncio.sleep(EVERY)

        await asyncio.gather(*(wait() for _ in range(callers)))

    run(scenario, debug=False)
    return found
