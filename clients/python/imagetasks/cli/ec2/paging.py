"""Pages: asking for one after the other, cutting off after --max-items, and going on from there later.

A resume token is base64 of JSON: EC2's token of the page in which the listing was cut, and how many items of
that page have been shown, `{"NextToken": ..., "boto_truncate_amount": ...}`.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from imagetasks.cli.ec2.failures import PagingError
from imagetasks.cli.ec2.model import RESULTS

_TOKEN = "NextToken"  # noqa: S105 - a member's name
_SHOWN = "boto_truncate_amount"

Members = dict[str, Any]
Call = Callable[[Members], Members]


class Listing:
    """The pages of a listing, asked for as they are iterated. Iterate once.

    Args:
        call: Asks for one page.
        parameters: EC2's, and under "PaginationConfig" MaxItems, PageSize and StartingToken.

    Attributes:
        resume_token: Where a later command can go on; None if nothing was cut off. Known after the iteration.
    """

    def __init__(self, call: Call, parameters: Members) -> None:
        self._call = call
        self._parameters = dict(parameters)
        config = self._parameters.pop("PaginationConfig", {})
        self._max_items = _number(config.get("MaxItems"))
        self._page_size = _number(config.get("PageSize"))
        self._starting_token = config.get("StartingToken")
        self.resume_token: str | None = None

    @property
    def is_partial(self) -> bool:
        """Whether it begins or may end within the whole list, so that the pages' borders matter."""
        return self._max_items is not None or self._starting_token is not None

    def __iter__(self) -> Iterator[Members]:
        token: Members = {_TOKEN: None}
        skipped: Any = None
        if self._starting_token is not None:
            token, skipped = _decode(self._starting_token)
            self._continue_from(token)
        if self._page_size is not None:
            self._parameters["MaxResults"] = self._page_size
        seen = 0
        previous: Members | None = None
        while True:
            page = self._call(self._parameters)
            if skipped is not None:
                page[RESULTS] = page[RESULTS][skipped:]
            items = page[RESULTS]
            surplus = 0 if self._max_items is None else seen + len(items) - self._max_items
            if surplus > 0:
                kept = len(items) - surplus
                page[RESULTS] = items[:kept]
                token[_SHOWN] = kept + (skipped or 0)
                self._end_at(token)
                yield page
                return
            yield page
            seen += len(items)
            skipped = None
            token = {_TOKEN: page.get(_TOKEN) or None}
            if token[_TOKEN] is None:
                return
            if seen == self._max_items:
                self._end_at(token)
                return
            if token == previous:
                raise PagingError(f"The same next token was received twice: {token}")
            self._continue_from(token)
            previous = token

    def merged(self) -> Members:
        """All pages as one answer, with the resume token if it was cut off."""
        whole: Members = {RESULTS: [item for page in self for item in page[RESULTS]]}
        if self.resume_token is not None:
            whole[_TOKEN] = self.resume_token
        return whole

    def _continue_from(self, token: Members) -> None:
        for name, value in token.items():
            if value is not None and value != "None":
                self._parameters[name] = value
            else:
                self._parameters.pop(name, None)

    def _end_at(self, token: Members) -> None:
        if set(token) - {_SHOWN} != {_TOKEN}:
            raise ValueError(f"Bad starting token: {token}")
        self.resume_token = base64.b64encode(json.dumps(token).encode()).decode()


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _decode(text: str) -> tuple[Members, Any]:
    """The token and how many items to skip; what is no resume token is EC2's own, as old versions took it."""
    try:
        token = json.loads(base64.b64decode(text.encode()).decode())
        token.pop("boto_encoded_keys", None)
        return token, token.pop(_SHOWN, 0)
    except (ValueError, TypeError):
        return _decode_old(text)


def _decode_old(text: str) -> tuple[Members, int]:
    token, separator, number = text.partition("___")
    skipped = 0
    if separator:
        if "___" in number:
            raise ValueError(f"Bad starting token: {text}")
        try:
            skipped = int(number)
        except ValueError:
            token = text
    return {_TOKEN: None if token == "None" else token}, skipped  # noqa: S105 - how nothing is written
