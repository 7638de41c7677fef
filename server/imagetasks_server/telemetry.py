"""Every log event, named once, and how the log is rendered."""

import enum
import logging
import sys

import structlog


class Event(enum.StrEnum):
    """What the log tells: a constant phrase each; what varies stands in fields."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"
    CALL = "call"
    CALL_FAILED = "call failed inside the gateway"
    READ_FAILED = "read failed inside the gateway"
    ACCOUNT_FAILED = "account cannot be used"
    ORGANIZATION_FAILED = "accounts of the organization cannot be listed"
    ACCOUNTS_LISTED = "accounts of the organization have changed"
    KEYS_FAILED = "keys for tokens cannot be fetched"
    KEYS_FETCHED = "keys for tokens fetched"
    UNCLASSIFIED = "AWS error is not classified"
    SANDBOX_ENDED = "sandbox ended by itself"


def configure_log(level: str, *, json_lines: bool) -> None:
    """Log to stderr: JSON lines for machines, or coloured lines for a terminal.

    Args:
        level: debug, info, warning or error.
        json_lines: False is for people.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if json_lines:
        processors.append(structlog.processors.dict_tracebacks)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
