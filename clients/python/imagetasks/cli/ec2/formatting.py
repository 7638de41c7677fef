"""How an answer is printed: JSON, text or table, after the query; and the terminal's part in it."""

import argparse
import fcntl
import json
import os
import struct
import sys
import termios
from datetime import datetime
from io import StringIO
from typing import Any, Protocol, TextIO

from imagetasks.cli.ec2.model import OPERATION, RESULTS
from imagetasks.cli.ec2.paging import Listing, Members

OUTPUT_VARIABLE = "AWS_DEFAULT_OUTPUT"
RESET = "\x1b[0m"
_DEFAULT_WIDTH = 80


class Query(Protocol):
    """A compiled JMESPath expression."""

    def search(self, value: Any) -> Any:
        """What it finds in a value."""
        ...


class Resetting:
    """An output that puts the colours back after each piece."""

    def __init__(self, output: StringIO) -> None:
        self._output = output

    def write(self, text: str) -> int:
        """Writes text and a reset."""
        return self._output.write(text + RESET)


class Formatter:
    """Prints answers.

    Args:
        kind: "json", "text" or "table".
        query: What to print of an answer; None: all.
        color: "on", "off" or "auto": on a terminal.

    Raises:
        ValueError: There is no such kind.
    """

    def __init__(self, kind: str, query: Query | None, color: str) -> None:
        if kind not in {"json", "text", "table"}:
            raise ValueError(f"Unknown output type: {kind}")
        self._kind = kind
        self._query = query
        self.coloured = kind == "table" and (color == "on" or (color == "auto" and _is_terminal(sys.stdout)))

    @property
    def is_paged(self) -> bool:
        """Whether it prints page by page, so that the pages' borders show."""
        return self._kind == "text"

    def write_listing(self, listing: Listing) -> None:
        """Prints a listing, and where to resume it."""
        if not self.is_paged:
            self._write(listing.merged())
            return
        for page in listing:
            self._write({RESULTS: page[RESULTS]})
        if listing.resume_token is not None:
            self._write({"NextToken": {"NextToken": listing.resume_token}})

    def write_answer(self, answer: Members) -> None:
        """Prints a single answer of EC2."""
        self._write(answer)

    def _write(self, value: Any) -> None:
        if self._query is not None:
            value = self._query.search(value)
        # One piece for the system, however small those of the formatter; what came before an error counts.
        buffer = StringIO()
        try:
            if self._kind == "json":
                _write_json(value, buffer)
            elif self._kind == "text":
                from imagetasks.cli.ec2 import text  # noqa: PLC0415 - one of three is used

                text.write(value, buffer)
            else:
                from imagetasks.cli.ec2 import table  # noqa: PLC0415

                style = table.Coloured() if self.coloured else table.Plain()
                output = Resetting(buffer) if self.coloured else buffer
                table.write(OPERATION, value, output, terminal_width=_terminal_width(), style=style)
        finally:
            sys.stdout.write(buffer.getvalue())
            sys.stdout.flush()


def _write_json(value: Any, output: StringIO) -> None:
    if value != {}:
        json.dump(value, output, indent=4, default=_to_json, ensure_ascii=False)
        output.write("\n")


def _to_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError("Encountered unrecognized type in JSON encoder.")


def of(chosen: argparse.Namespace) -> Formatter:
    """The formatter that the global options and AWS_DEFAULT_OUTPUT name.

    With colours, `chosen.reset` becomes what is to be written after each piece of a text, errors included.

    Raises:
        ValueError: The environment names no kind of output.
    """
    kind = chosen.output or os.environ.get(OUTPUT_VARIABLE) or "json"
    formatter = Formatter(kind, chosen.query, chosen.color)
    if formatter.coloured:
        chosen.reset = RESET
    return formatter


def write_skeleton(value: Members) -> None:
    """Prints a request to be filled out; neither query nor output option apply."""
    sys.stdout.write(f"{json.dumps(value, indent=4)}\n")


def _is_terminal(output: TextIO) -> bool:
    try:
        return output.isatty()
    except (OSError, ValueError):
        return False


def _terminal_width() -> int:
    try:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (OSError, ValueError):
        return _DEFAULT_WIDTH
    return int(struct.unpack("hhhh", size)[1])
