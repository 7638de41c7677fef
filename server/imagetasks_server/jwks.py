"""An issuer's public keys, from a file or a URL: fetched when needed, the last good ones kept.

A call whose key is known never waits; keys that have become old are fetched again behind it. One whose key
is not known waits for a fetch, if the last one is long enough ago; all who come meanwhile wait for the same.
"""

import asyncio
import contextvars
import importlib
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import structlog

from imagetasks_server.caller_settings import JwtSettings
from imagetasks_server.clock import Clock
from imagetasks_server.config import ConfigError
from imagetasks_server.errors import Unavailable
from imagetasks_server.identity import invalid
from imagetasks_server.jwt_tokens import Header, Key, Keys
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

MAX_BYTES: Final = 512 * 1024
# A file costs nothing to look at: seconds after which that is done again.
FILE_EVERY: Final = 2.0

Fetch: TypeAlias = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Published:
    """What an issuer has published.

    Attributes:
        keys: Its keys.
        text: As they were read.
    """

    keys: Keys
    text: bytes


def load_keys(rules: JwtSettings | None) -> Published | None:
    """Read and check a `jwks_file`. Blocks.

    Returns:
        What is in it; None where there is none. A URL is asked only once a call needs it.

    Raises:
        ConfigError: It cannot be read, or has no key that could be used.
    """
    if rules is None or rules.jwks_file is None:
        return None
    path = rules.jwks_file
    try:
        text = _read(path)
        return Published(Keys(text), text)
    except OSError as error:
        raise ConfigError(f"jwt.jwks_file: {path}: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise ConfigError(f"jwt.jwks_file: {path} {error}") from None


class Jwks:
    """The keys of one issuer.

    Args:
        rules: Where they are, and how often they may be fetched.
        clock: Unix seconds.

    Attributes:
        is_up: Whether the newest fetch succeeded; None until the first.
    """

    def __init__(self, rules: JwtSettings, clock: Clock) -> None:
        self._clock = clock
        self._timeout = rules.timeout
        self._every, self._retry = rules.refresh, rules.retry
        if rules.jwks_file is not None:
            self._every, self._retry = min(self._every, FILE_EVERY), min(self._retry, FILE_EVERY)
        # Now: it takes 50 ms, for which the first call with a token would hold up all others.
        importlib.import_module("joserfc.jwt")
        self._fetch = _of(rules)
        self.is_up: bool | None = None
        self._published: Published | None = None
        self._good_until = 0.0
        self._next_try = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> Keys | None:
        """All keys, unless they are due to be fetched again."""
        published = self._published
        return None if published is None or self._clock() >= self._good_until else published.keys

    async def key(self, header: Header) -> Key:
        """The key that a token says it was signed with.

        Raises:
            Unauthenticated: The issuer has no such key.
            Unavailable: No keys could be fetched so far.
        """
        key = self._find(header)
        if key is None or self._clock() >= self._good_until:
            self._start()
        if key is None and self._task is not None:
            # It belongs to none of those who wait for it.
            await asyncio.wait([self._task])
            key = self._find(header)
        if self._published is None:
            raise Unavailable(
                "KEYS_UNAVAILABLE",
                "the keys that the token must be checked with cannot be had now",
                retry_after=max(0.0, self._next_try - self._clock()),
            )
        if key is None:
            raise invalid()
        return key

    def take(self, published: Published) -> None:
        """From now on these are the last good keys."""
        self.is_up = True
        if self._published is None or published.text != self._published.text:
            # Else the keys stay the very same: signatures that were checked with them need not be again.
            self._published = published
            log.info(Event.KEYS_FETCHED)
        self._good_until = self._clock() + self._every

    async def close(self) -> None:
        """End what runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _find(self, header: Header) -> "Key | None":
        return None if self._published is None else self._published.keys.find(header)

    def _start(self) -> None:
        if self._task is None and self._clock() >= self._next_try:
            self._next_try = self._clock() + self._retry
            self._task = asyncio.create_task(self._renew(), context=contextvars.Context())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.is_up = False
            log.error(Event.KEYS_FAILED, exc_info=error)

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                text = await self._fetch()
            known = self._published
            published = known if known is not None and known.text == text else Published(Keys(text), text)
        except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
            self.is_up = False
            log.warning(Event.KEYS_FAILED, text=str(error) or type(error).__name__)
            return
        self.take(published)


def _of(rules: JwtSettings) -> Fetch:
    url, path = rules.jwks_url, rules.jwks_file
    if path is not None:
        return lambda: asyncio.to_thread(_read, path)
    assert url is not None
    return lambda: _download(url)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    _limit(text)
    return text


async def _download(url: str) -> bytes:
    # Certificates are read from the disk.
    context = await asyncio.to_thread(ssl.create_default_context)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        # Elsewhere somebody else may answer.
        session.get(url, allow_redirects=False, headers={"accept": "application/json"}) as response,
    ):
        if response.status != 200:  # noqa: PLR2004  # OK
            raise ValueError(f"the answer was HTTP {response.status}")
        text = bytearray()
        async for piece in response.content.iter_any():
            text += piece
            _limit(text)
        return bytes(text)


def _limit(text: bytes | bytearray) -> None:
    if len(text) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
