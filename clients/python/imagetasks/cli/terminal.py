"""The one transient line on stderr that says what is still awaited."""

import os
from typing import TextIO

_CLEAR = "\r\x1b[K"


class StatusLine:
    """A line that is overwritten in place; nothing at all where the output is no terminal.

    Rows that go to the same terminal are printed between `clear` and the next `show`.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self.enabled = output.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = False

    def show(self, content: object) -> None:
        """Puts the content's text in place of the line, cut to the terminal's width."""
        if not self.enabled or not (text := str(content)):
            return
        # A pseudo-terminal may say 0.
        width = os.get_terminal_size(self._output.fileno()).columns or 80
        if len(text) >= width:
            text = f"{text[: width - 2]}…"
        # First, so that Ctrl-C at any point hereafter still finds it to be cleared.
        self._shown = True
        self._output.write(f"{_CLEAR}{text}")
        self._output.flush()

    def clear(self) -> None:
        """Leaves no trace of the line."""
        if self._shown:
            self._output.write(_CLEAR)
            self._output.flush()
            self._shown = False
