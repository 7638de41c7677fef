"""What is told of what a wait does not hear of: when it has lasted, and when it is over."""

import pytest

from imagetasks.cli.hindrances import QUIET_SECONDS, Hindrances


class Told:
    """Hindrances on a clock that a test moves, and what they have told since it was asked last."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lines: list[str] = []
        self._hindrances = Hindrances(self._lines.append, lambda: self.now)

    def after(self, seconds: float, **present: str) -> list[str]:
        self.now += seconds
        self._lines.clear()
        self._hindrances.are(present)
        return list(self._lines)


@pytest.fixture
def told() -> Told:
    return Told()


def test_what_passes_soon_needs_no_word(told: Told) -> None:
    assert told.after(0, a="throttled") == []
    assert told.after(QUIET_SECONDS / 2, a="throttled") == []
    assert told.after(1) == []


def test_what_lasts_is_told_once_and_so_is_its_end(told: Told) -> None:
    told.after(0, a="throttled")
    assert told.after(QUIET_SECONDS, a="throttled") == ["no news of a, still waiting: throttled"]
    assert told.after(60, a="throttled") == []
    assert told.after(60, a="unreachable") == []
    assert told.after(1) == ["news of a again"]
    assert told.after(60) == []


def test_a_new_hindrance_lasts_anew(told: Told) -> None:
    told.after(0, a="throttled")
    told.after(QUIET_SECONDS / 2)
    told.after(QUIET_SECONDS / 2, a="throttled")
    assert told.after(QUIET_SECONDS / 2, a="throttled") == []


def test_each_is_told_by_itself(told: Told) -> None:
    told.after(0, a="throttled")
    assert told.after(QUIET_SECONDS, a="throttled", b="denied") == ["no news of a, still waiting: throttled"]
    assert told.after(QUIET_SECONDS, b="denied") == [
        "news of a again",
        "no news of b, still waiting: denied",
    ]
