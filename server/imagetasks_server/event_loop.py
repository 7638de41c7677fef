"""The event loop that everything runs on."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run(coroutine: Coroutine[None, None, T]) -> T:
    """Run it to its end, on the faster loop if that is installed."""
    try:
        import uvloop  # noqa: PLC0415  # an extra
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
