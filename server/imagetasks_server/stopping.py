"""What tells the process from outside to end, or to read its configuration again."""

import asyncio
import contextlib
import os
import signal
import threading
from typing import Final

_FIRST: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Told by SIGINT, SIGTERM and SIGHUP. For one event loop, which must run.

    A second SIGINT or SIGTERM ends the process as it would without us.

    Attributes:
        stop: Set by the first SIGINT or SIGTERM, or when the terminal has closed.
        reload: Set by SIGHUP; whoever heeds it clears it.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._terminals = _terminals()
        for number in _FIRST:
            self._loop.add_signal_handler(number, self._first)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def stop_with_stdin(self) -> None:
        """Stop when the standard input ends, so also when whoever holds its other end is killed."""
        threading.Thread(target=self._wait_for_end_of_stdin, name="stdin", daemon=True).start()

    def _first(self) -> None:
        self.stop.set()
        for number in _FIRST:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    def _hang_up(self) -> None:
        # A terminal that closes sends the same signal, and whoever sat there wants nothing left running.
        (self.stop if self._terminals - _terminals() else self.reload).set()

    def _wait_for_end_of_stdin(self) -> None:
        # Bare reads: a thread blocked in a buffered one holds a lock that the interpreter needs to exit.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self.stop.set)


def _terminals() -> set[int]:
    """Which of our three streams are a terminal that is still there."""
    return {descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)}
