"""Every log event, named once, and how the log is rendered."""

import enum
import logging
import sys

import structlog


class Event(enum.StrEnum):
    """What the log tells: a constant phrase each; what varies stands in fields."""

    STARTING = "starting"
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
    _render_others(level, processors, renderer)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _render_others(
    level: str, processors: list[structlog.typing.Processor], renderer: structlog.typing.Processor
) -> None:
    """Has what libraries log by `logging` look like what we log."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Below this, botocore tells what it signs and sends.
    logging.basicConfig(handlers=[handler], level=max("WARNING", level.upper(), key=_number), force=True)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]
