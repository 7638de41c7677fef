"""What libraries log: it looks like what we log, and says nothing of what somebody has sent.

Some put into their lines what they could not read: of metadata, of a scraper's request, of a variable that
has a key for the collector of traces. Anybody who reaches a port could so write into the log what he likes,
and as much; and a token that was damaged on its way would stand there for all who read it.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Final

import structlog

from imagetasks_server.clock import Clock

# Those that do. `opentelemetry.util.re` reads the variable, the other two of it what callers send.
_INDISCREET: Final = (
    "aiohttp.server",
    "grpc._cython.cygrpc",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
    "opentelemetry.util.re",
)
# Seconds between two lines of one of them.
QUIET_SECONDS: Final = 60.0

_PLACE: Final = re.compile(r"%[-+ #0-9.]*[a-z]")


def show_libraries(level: str, processors: Sequence[structlog.typing.Processor]) -> None:
    """Have what libraries log by `logging`, and what they warn of, shown as our lines are.

    Args:
        level: debug, info, warning or error: the least that we log. Of libraries nothing below a warning.
        processors: Of our lines; the last one renders them.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=["times"]),
                *processors[:-1],
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, processors[-1]],
        )
    )
    # Below this, botocore tells what it signs and sends.
    logging.basicConfig(handlers=[handler], level=max("WARNING", level.upper(), key=_number), force=True)
    logging.captureWarnings(capture=True)
    for name in _INDISCREET:
        logger = logging.getLogger(name)
        for before in [each for each in logger.filters if isinstance(each, Discretion)]:
            logger.removeFilter(before)
        logger.addFilter(Discretion())


class Discretion(logging.Filter):
    """Lets pass that something could not be read, now and then, as a warning, and without the thing.

    What has gone wrong in the library or in our own code passes as it is.

    Args:
        clock: Any seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._quiet_until = -QUIET_SECONDS
        self._times = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is logged."""
        if record.exc_info and not _is_of_input(record.exc_info[1]):
            return True
        self._times += 1
        # As seldom as cheap: one call can bring hundreds.
        if self._clock() < self._quiet_until:
            return False
        self._quiet_until = self._clock() + QUIET_SECONDS
        record.times, self._times = self._times, 0
        record.msg, record.args, record.exc_info = _PLACE.sub("...", str(record.msg)), (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return logging.getLogger(record.name).isEnabledFor(record.levelno)


def _is_of_input(error: BaseException | None) -> bool:
    """Whether that is what a library raises about bytes that it could not read."""
    return isinstance(error, UnicodeError) or type(error).__module__ == "aiohttp.http_exceptions"


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]
