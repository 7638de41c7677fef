"""Reads the configuration again, on SIGHUP, and puts in force what can change while calls run.

All or nothing: what is wrong changes nothing at all, and is reported by its key.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeAlias

import structlog

from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

# Checks new settings, on a thread, and may raise `ConfigError`; returns what puts them in force, on the loop.
Preparation: TypeAlias = Callable[[Settings], Callable[[], None]]

_ACCOUNTS: Final = {"accounts", "organizations"}
# Whether there is TLS, and whether clients need a certificate, is settled at the start; the files are not.
_FILES: Final = {"tls_certificate", "tls_key", "tls_client_ca"}


class Reload:
    """What a new configuration changes.

    Args:
        started: The settings at the start.
        read: Reads them again. Blocks; raises `ConfigError`.
        replace: Puts accounts and organizations in force, and calls what it is given in the same moment: no
            caller sees new accounts by an old permission. Raises `ConfigError`, and has changed nothing then.
        prepare: What else follows, in this order.
        follows: Settings that `prepare` puts in force.

    Attributes:
        is_up: Whether what was last read is in force.
    """

    def __init__(
        self,
        started: Settings,
        read: Callable[[], Settings],
        replace: Callable[[Settings, Callable[[], None]], Awaitable[None]],
        prepare: Sequence[Preparation] = (),
        follows: Collection[str] = (),
    ) -> None:
        self.is_up = True
        self._started = started
        self._read = read
        self._replace = replace
        self._prepare = prepare
        self._follows = {*_ACCOUNTS, *follows}

    async def heed(self, asked: asyncio.Event) -> None:
        """Reload each time that it is asked for, until cancelled."""
        while True:
            await asked.wait()
            asked.clear()
            await self.reload()

    async def reload(self) -> bool:
        """Reload once. Returns whether the new configuration is in force; if not, that is in the log."""
        self.is_up = await self._reload()
        return self.is_up

    async def _reload(self) -> bool:
        try:
            settings, ready = await asyncio.to_thread(self._read_and_prepare)

            def switch() -> None:
                for use in ready:
                    use()

            await self._replace(settings, switch)
        except ConfigError as error:
            log.error(Event.RELOAD_REFUSED, text=str(error))  # noqa: TRY400  # the text says all
            return False
        except Exception as error:  # whatever it is, the gateway goes on as it was
            log.exception(Event.RELOAD_REFUSED, exc_info=error)
            return False
        for key in self._needing_a_restart(settings):
            log.warning(Event.RELOAD_INCOMPLETE, key=key)
        log.info(Event.RELOADED)
        return True

    def _read_and_prepare(self) -> tuple[Settings, list[Callable[[], None]]]:
        settings = self._read()
        return settings, [prepare(settings) for prepare in self._prepare]

    def _needing_a_restart(self, settings: Settings) -> list[str]:
        before, now = dict(self._started), dict(settings)
        changed = [key for key in now if now[key] != before[key] and key not in self._follows]
        return [
            key for key in changed if key not in _FILES or (now[key] is None) is not (before[key] is None)
        ]
