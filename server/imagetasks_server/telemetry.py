"""Every log event, named once, and how the log is rendered."""

import asyncio
import atexit
import enum
import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

import orjson
import structlog

from imagetasks_server.library_log import show_libraries


class Event(enum.StrEnum):
    """What the log tells: a constant phrase each; what varies stands in fields."""

    STARTING = "starting"
    LISTENING = "listening"
    EXPOSED = "others can reach this port, in plaintext"
    METRICS = "metrics are served"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"
    CALL = "call"
    CALL_FAILED = "call failed inside the gateway"
    READ_FAILED = "read failed inside the gateway"
    ACCOUNT_FAILED = "account cannot be used"
    ORGANIZATION_FAILED = "accounts of the organization cannot be listed"
    ACCOUNTS_LISTED = "accounts of the organization have changed"
    CREDENTIALS_LACKING = "no account has credentials"
    CREDENTIALS_FOUND = "an account has credentials again"
    CERTIFICATE = "certificate is in force"
    CERTIFICATE_REFUSED = "certificate cannot be used, the one before stays"
    KEY_EXPOSED = "every user of this machine can read the private key"
    RELOADED = "configuration read again"
    RELOAD_REFUSED = "configuration cannot be used, the one before stays"
    RELOAD_INCOMPLETE = "a setting that has changed needs a restart"
    KEYS_FAILED = "keys for tokens cannot be fetched"
    KEYS_FETCHED = "keys for tokens fetched"
    UNCLASSIFIED = "AWS error is not classified"
    FALLEN = "gateway ends: what should last has failed"
    SANDBOX_ENDED = "sandbox ended by itself"


def configure_log(level: str, *, json_lines: bool) -> None:
    """Log to stderr: JSON lines for machines, or coloured lines for a terminal.

    Args:
        level: debug, info, warning or error.
        json_lines: False is for people.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    if json_lines:
        processors.append(_json_line)
    else:
        colors = sys.stderr.isatty()
        told = structlog.dev.plain_traceback
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=told))
    show_libraries(level, processors)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _Lines:
    """Writes lines: all of one turn of the event loop at once, for each write is a call to the system."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        # Kept: to find out which loop runs is a call to the system, too, before Python 3.12.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        atexit.register(self.flush)

    def msg(self, line: str) -> None:
        """Write it soon; at once outside of an event loop."""
        self._waiting.append(line)
        if len(self._waiting) > 1:
            return
        if self._loop is None or self._loop.is_closed() or self._thread != threading.get_ident():
            try:
                self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
            except RuntimeError:
                self.flush()
                return
        if self._loop.is_running():
            self._loop.call_soon(self.flush)
        else:
            self.flush()

    def error(self, line: str) -> None:
        """Write it now: the next thing may be the end."""
        self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines, self._waiting = self._waiting, []
        if lines:
            self._stream.write("\n".join((*lines, "")))
            self._stream.flush()

    debug = info = warning = msg
    critical = exception = error


def _json_line(_logger: object, _name: str, fields: structlog.typing.EventDict) -> str:
    """All of a line in one step: in structlog's own three it costs four times as much."""
    fields.setdefault("timestamp", datetime.now(UTC))
    if "exc_info" in fields:
        fields = _told(_logger, _name, fields)
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z).decode()
    except TypeError:
        # What is no UTF-8, or a number beyond 64 bits.
        return json.dumps(fields, default=str)


# Without what was in the variables: a credential may be among it.
_told = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
