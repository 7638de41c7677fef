"""The shorthand syntax of structures: `Name=bucket,Values=one,two`.

    parameter = pair *("," pair)
    pair      = key ["@"] "=" values        with "@", values may be file:// addresses
    values    = list / hash / csv
    list      = "[" [item *("," item)] "]"
    hash      = "{" [key ["@"] "=" item *("," key ["@"] "=" item)] "}"
    item      = list / hash / value
    csv       = value *("," value)          one value is a string, several are a list
    value     = "..." / '...' / plain       a backslash escapes a quote or a plain comma

Where a plain value is followed by "=", it was the next pair's key: the list ends before it.
"""

import re
import string
from collections.abc import Callable
from typing import Any

from imagetasks.cli.ec2 import files
from imagetasks.cli.ec2.model import Shape

_KEY = frozenset(string.ascii_letters + string.digits + "-_.#/:")

_QUOTED = {
    "'": ("singled quoted", re.compile(r"'(?:\\'|[^'])*'")),
    '"': ("double quoted", re.compile(r'"(?:\\"|[^"])*"')),
}
# What may begin a plain value, go on in the first of a list, and go on in the others: these end at "=" too,
# where the next pair begins. Nothing beyond the Basic Multilingual Plane.
_BEGIN = "!#-&(-+\\--<>-Z\\\\-z\u007c-\uffff"
_FIRST = re.compile(f"(?:\\\\,|[{_BEGIN}])(?:\\\\,|[\\s!#-&(-+\\--\\\\^-|~-\uffff])*")
_OTHER = re.compile(f"(?:\\\\,|[{_BEGIN}])(?:\\\\,|[\\s!#-&(-+\\--<>-\uffff])*")


class SyntaxProblem(Exception):
    """The text is not shorthand; shows the place."""

    def __init__(self, what: str, text: str, place: int, hint: str = "") -> None:
        super().__init__(f"{what} for input:\n{_marked(text, place)}{hint}")


def _marked(text: str, place: int) -> str:
    """The text with a caret below the place."""
    begin = text.rfind("\n", 0, place) + 1
    end = text.find("\n", place)
    head, tail = (text, "") if end < 0 else (text[:end], text[end:])
    return f"{head}\n{' ' * (place - begin)}^{tail}"


def parse(text: str) -> dict[str, Any]:
    """The structure that the text stands for; its values are strings, lists and structures.

    Raises:
        SyntaxProblem: It is not shorthand.
        files.Unreadable: A file it names cannot be read.
    """
    return _Reader(text).parameter()


def coerce(value: Any, shape: Shape) -> Any:
    """The value with single values made lists where the shape wants a list; others stay as they are."""
    if shape.kind == "structure" and isinstance(value, dict):
        return {
            key: coerce(each, shape.members[key]) if key in shape.members else each
            for key, each in value.items()
        }
    if shape.kind == "list":
        assert shape.member is not None
        if not isinstance(value, list):
            return [value]
        return [coerce(each, shape.member) for each in value]
    return value


class _Reader:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._from_files = False

    def parameter(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        pair_end = 0
        while True:
            key, value = self._pair(self._values)
            if key in found:
                raise SyntaxProblem(
                    f'Second instance of key "{key}" encountered',
                    self._text,
                    pair_end + 1,
                    '\nThis is often because there is a preceding "," instead of a space.',
                )
            found[key] = value
            pair_end = self._place
            if self._at_end():
                return found
            self._expect(",")

    def _pair(self, read: Callable[[], Any]) -> tuple[str, Any]:
        begin = self._place
        while self._here() and self._here() in _KEY:
            self._place += 1
        key = self._text[begin : self._place]
        self._skip_space()
        self._from_files = self._here() == "@"
        if self._from_files:
            self._expect("@")
        self._expect("=")
        return key, read()

    def _values(self) -> Any:
        if self._at_end():
            return ""
        return self._csv() if self._here() not in "[{" else self._item()

    def _item(self) -> Any:
        if self._here() == "[":
            return self._list()
        if self._here() == "{":
            return self._hash()
        return self._value(_FIRST)

    def _list(self) -> list[Any]:
        self._expect("[")
        items = []
        while self._here() != "]":
            items.append(self._item())
            self._end_item("]")
        self._expect("]", space_after=False)
        return items

    def _hash(self) -> dict[str, Any]:
        self._expect("{")
        pairs = {}
        while self._here() != "}":
            key, value = self._pair(self._item)
            self._end_item("}")
            pairs[key] = value
        self._expect("}", space_after=False)
        return pairs

    def _end_item(self, closing: str) -> None:
        self._skip_space()
        if self._here() != closing:
            self._expect(",")

    def _csv(self) -> Any:
        values = [self._value(_FIRST)]
        self._skip_space()
        while self._here() == ",":
            comma = self._place
            self._expect(",")
            try:
                value = self._value(_OTHER)
                self._skip_space()
                if not self._at_end() and self._here() != ",":
                    raise self._unexpected(",")
            except SyntaxProblem:
                if self._at_end():
                    raise
                # It was the next pair's key.
                self._place = self._text.rindex(",", comma, self._place + 1)
                break
            values.append(value)
        return values if len(values) > 1 else values[0]

    def _value(self, plain: re.Pattern[str]) -> Any:
        quote = self._here()
        if quote in _QUOTED:
            name, quoted = _QUOTED[quote]
            value = self._match(quoted, name)[1:-1].replace(f"\\{quote}", quote).replace("\\\\", "\\")
        elif plain is _FIRST and not plain.match(self._text, self._place):
            return ""
        else:
            value = self._match(plain, "second").replace("\\,", ",").rstrip()
        loaded = files.load(value, remote=False) if self._from_files else None
        return value if loaded is None else loaded

    def _match(self, pattern: re.Pattern[str], name: str) -> str:
        found = pattern.match(self._text, self._place)
        if found is None:
            raise SyntaxProblem(f"Expected: '<{name}>', received: '<none>'", self._text, self._place)
        self._place = found.end()
        return found[0]

    def _expect(self, character: str, *, space_after: bool = True) -> None:
        self._skip_space()
        if self._here() != character:
            raise self._unexpected(character)
        self._place += 1
        if space_after:
            self._skip_space()

    def _unexpected(self, character: str) -> SyntaxProblem:
        received = self._here() or "EOF"
        return SyntaxProblem(f"Expected: '{character}', received: '{received}'", self._text, self._place)

    def _skip_space(self) -> None:
        while self._here() and self._here() in string.whitespace:
            self._place += 1

    def _here(self) -> str:
        return self._text[self._place : self._place + 1]

    def _at_end(self) -> bool:
        return self._place >= len(self._text)
