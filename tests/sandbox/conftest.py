"""Running sandboxes. Those of the session are shared by all tests: each makes its own AMIs and buckets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sandbox_stage import Stage, stage


@pytest.fixture
def stages() -> Iterator[Callable[..., Stage]]:
    """Starts a sandbox with more arguments; it runs until the test ends."""
    with ExitStack() as stack:
        yield lambda *arguments: stage(stack, *arguments)


@pytest.fixture(scope="session")
def slow() -> Iterator[Stage]:
    """A sandbox whose tasks outlast every test."""
    with ExitStack() as stack:
        yield stage(stack, "--no-throttle")


@pytest.fixture(scope="session")
def fast() -> Iterator[Stage]:
    """A sandbox whose tasks take between 2 and 4 seconds."""
    with ExitStack() as stack:
        yield stage(stack, "--no-throttle", "--speed", "40")


@pytest.fixture(scope="session")
def seeded() -> Iterator[Stage]:
    """A sandbox with a world in it."""
    with ExitStack() as stack:
        yield stage(stack, "--no-throttle", "--seed", "--speed", "4")
