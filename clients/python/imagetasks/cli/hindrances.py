"""What keeps a wait from hearing of its tasks: told once it has lasted, and when it is over."""

import time
from collections.abc import Callable, Mapping

# Seconds that need no word: most throttles have passed by then.
QUIET_SECONDS = 5.0


class Hindrances:
    """Tells of each hindrance when it has lasted and when it is over, however often it is met between.

    Args:
        tell: Prints a line for people.
        clock: Seconds, of a clock that only goes forward.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def are(self, present: Mapping[str, str]) -> None:
        """Takes all of this moment: what is not heard of, and why."""
        for subject in sorted(self._since.keys() - present.keys()):
            del self._since[subject]
            if subject in self._told:
                self._told.remove(subject)
                self._tell(f"news of {subject} again")
        now = self._clock()
        for subject, why in present.items():
            lasted = now - self._since.setdefault(subject, now)
            if subject not in self._told and lasted >= QUIET_SECONDS:
                self._told.add(subject)
                self._tell(f"no news of {subject}, still waiting: {why}")
