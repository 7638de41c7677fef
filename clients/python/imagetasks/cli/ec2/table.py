"""Table output: sections below each other, all as wide as the widest; too wide for the terminal, rows turn.

A structure is a section with its scalars as one row; a list of structures one with a row for each. Members
that are no scalars are sections of their own below, with a rule at each side for each level. Where the
whole is wider than the terminal, every section of one row is turned: a line for each name and value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import east_asian_width

from imagetasks.cli.ec2.output import Output

_PADDING = 4  # around a cell's text, the rule at its right included
_BORDER = 2


class Plain:
    """No colours."""

    def rule(self, text: str) -> str:
        """A nested section's rule at the side."""
        return text

    def cell(self, text: str) -> str:
        """A value."""
        return text


class Coloured(Plain):
    """Colours of a terminal."""

    def rule(self, text: str) -> str:
        """Dim yellow."""
        return f"\x1b[2m\x1b[33m{text}\x1b[0m"

    def cell(self, text: str) -> str:
        """Bright blue."""
        return f"\x1b[1m\x1b[34m{text}\x1b[0m"


def write(title: str, value: Any, output: Output, *, terminal_width: int, style: Plain) -> None:
    """Writes a value as a table; nothing of an empty one.

    Args:
        title: Of the outermost section.
        value: What JSON can hold.
        output: Where to.
        terminal_width: Columns beyond which rows turn.
        style: The colours.

    Raises:
        ValueError: Rows of one list have different lengths.
    """
    sections = _Sections()
    if sections.add(title, value, level=0):
        _render(sections.all, output, terminal_width, style)


def _width(text: str) -> int:
    """Columns on a terminal: wide, full-width and ambiguous characters count two."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(character) in "WFA" else 1 for character in text)


@dataclass
class _Section:
    title: str
    level: int
    headers: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    columns: int | None = None

    def head(self, headers: Sequence[str]) -> None:
        self.headers = headers
        self._admit(headers)

    def add(self, values: Iterable[Any]) -> None:
        row = [str(value) for value in values]
        if self.columns is not None and len(row) != self.columns:
            raise ValueError(f"Row should have {self.columns} elements, instead it has {len(row)}")
        self.rows.append(row)
        self._admit(row)

    def _admit(self, cells: Sequence[str]) -> None:
        if self.columns is None:
            self.columns = len(cells)
        widths = [_width(cell) for cell in cells]
        if not self.widths:
            self.widths = widths
        for place, width in enumerate(widths):
            # More cells than columns: an IndexError, and the AWS CLI's text.
            self.widths[place] = max(width, self.widths[place])

    @property
    def width(self) -> int:
        """With borders, and two columns for each level."""
        columns = sum(self.widths) + _PADDING * len(self.widths)
        return max(_width(self.title), columns) + _BORDER + 2 * self.level

    def turned(self) -> "_Section":
        """A single row as lines of name and value."""
        if len(self.rows) != 1 or not self.headers:
            return self
        section = _Section(self.title, self.level)
        for pair in zip(self.headers, self.rows[0], strict=False):
            section.add(pair)
        return section

    def fitted(self, width: int) -> list[int]:
        """The columns' widths, scaled so that they fill the width exactly."""
        natural = [each + _PADDING for each in self.widths]
        if not natural:
            return []
        scale = width / float(sum(natural))
        fitted = [round(scale * each) for each in natural]
        surplus = sum(fitted) - width
        # What rounding left over is taken from the first columns, or given to the last.
        step, order = (1, range(len(fitted))) if surplus > 0 else (-1, range(len(fitted) - 1, -1, -1))
        for turn in range(abs(surplus)):
            fitted[order[turn % len(fitted)]] -= step
        return fitted


class _Sections:
    """Sections as a value is walked through."""

    def __init__(self) -> None:
        self.all: list[_Section] = []

    def add(self, title: str | None, value: Any, *, level: int) -> bool:
        """Adds a value's sections; without a title to the last one. False for an empty value."""
        if not value:
            return False
        if title is not None:
            self._begin(title, level)
        if isinstance(value, list):
            if isinstance(value[0], dict):
                self._add_structures(value, title or "", level)
            else:
                self._add_items(value)
        if isinstance(value, dict):
            self._add_structure(value, level)
        return True

    def _begin(self, title: str, level: int) -> None:
        self.all.append(_Section(title, level))

    def _add_items(self, items: list[Any]) -> None:
        for item in items:
            if _is_scalar(item):
                self.all[-1].add([item])
            elif all(_is_scalar(each) for each in item):
                self.all[-1].add(item)
            else:
                self.add(None, item, level=0)

    def _add_structure(self, members: dict[str, Any], level: int) -> None:
        headers, nested = _split([members])
        if len(headers) == 1:
            self.all[-1].add([headers[0], members[headers[0]]])
        elif headers:
            self.all[-1].head(headers)
            self.all[-1].add(members[header] for header in headers)
        for name in nested:
            self.add(name, members[name], level=level + 1)

    def _add_structures(self, items: list[Any], title: str, level: int) -> None:
        headers, nested = _split(items)
        self.all[-1].head(headers)
        for place, item in enumerate(items):
            if place and nested:
                self._begin(title, level)
                self.all[-1].head(headers)
            self.all[-1].add(item.get(header, "") for header in headers)
            for name in nested:
                if name in item:
                    self.add(name, item[name], level=level + 1)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _split(items: Iterable[Any]) -> tuple[list[str], list[str]]:
    """The names of scalar members and of others, each sorted."""
    scalar: set[str] = set()
    nested: set[str] = set()
    for item in items:
        for name in item:
            (scalar if _is_scalar(item[name]) else nested).add(name)
    return sorted(scalar), sorted(nested)


def _render(sections: list[_Section], output: Output, terminal_width: int, style: Plain) -> None:
    width = max(section.width for section in sections)
    if width > terminal_width:
        sections = [section.turned() for section in sections]
        width = max(section.width for section in sections)
    output.write("-" * width + "\n")
    for section in sections:
        _render_section(section, width - 2 * section.level, _Indented(output, section.level, style), style)


class _Indented:
    """Lines between the rules of their level."""

    def __init__(self, output: Output, level: int, style: Plain) -> None:
        self._output = output
        self._rules = style.rule("|") * level

    def line(self, text: str) -> None:
        # In pieces: where colours are on, each is followed by a reset.
        for piece in (self._rules, text, self._rules, "\n"):
            self._output.write(piece)


def _render_section(section: _Section, width: int, output: _Indented, style: Plain) -> None:
    if section.title:
        output.line(_centred(section.title, width, "|"))
        if not section.headers and not section.rows:
            output.line(f"+{'-' * (width - 2)}+")
    widths = section.fitted(width)
    if section.headers:
        output.line(_rule(widths))
        output.line(
            "".join(
                _centred(header, each, "" if place else "|")
                for place, (each, header) in enumerate(zip(widths, section.headers, strict=False))
            )
        )
    if section.rows and widths:
        output.line(_rule(widths))
        for row in section.rows:
            output.line(
                "".join(
                    _left(cell, each, "" if place else "|", style)
                    for place, (each, cell) in enumerate(zip(widths, row, strict=False))
                )
            )
        output.line(_rule(widths))


def _rule(widths: list[int]) -> str:
    return "".join(
        f"{'-' * (width - 1)}+" if place else f"+{'-' * (width - 2)}+" for place, width in enumerate(widths)
    )


def _centred(text: str, width: int, left: str) -> str:
    before = width // 2 - _width(text) // 2 - 1
    # A negative count of spaces is none, but it counts in what is left for the right side.
    after = width - 1 - (len(left) + before + _width(text))
    return f"{left}{' ' * before}{text}{' ' * after}|"


def _left(text: str, width: int, left: str, style: Plain) -> str:
    padding = 2 if width >= _width(text) + 2 + len(left) + 1 else 0
    after = width - len(left) - padding - _width(text) - 1
    return f"{left}{' ' * padding}{style.cell(text)}{' ' * after}|"
