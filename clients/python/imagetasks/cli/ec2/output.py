"""Where formatters write to."""

from typing import Protocol


class Output(Protocol):
    """Takes text in pieces."""

    def write(self, text: str, /) -> object:
        """Takes a piece."""
        ...
