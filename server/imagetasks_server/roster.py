"""Keeps the accounts of organizations up to date: a loop for each organization.

A listing that fails keeps the accounts that are known, and is tried again soon. Until the first one
succeeds the organization itself stands among the accounts, as one that cannot be asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import structlog

from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.errors import Error, Internal, Unavailable
from imagetasks_server.members import Member, all_accounts
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

# Seconds until a failed listing is tried again, unless `refresh` is less.
RETRY_AFTER: Final = 30.0

Lister: TypeAlias = Callable[[], Awaitable[Sequence[Member]]]
Changed: TypeAlias = Callable[[Sequence[AccountSettings], Mapping[str, Error]], Awaitable[None]]


class OrganizationState(NamedTuple):
    """What is known of an organization.

    Attributes:
        name: The gateway's name of it.
        accounts: How many accounts it has, as far as is known.
        up: Its newest listing succeeded.
    """

    name: str
    accounts: int
    up: bool


class Roster:
    """The configured accounts and those of organizations, as far as they are known.

    Args:
        configured: Always there.
        organizations: Each with what lists its accounts; that raises `Error`.
        changed: Is told all accounts, and the organizations that could not be listed so far.
    """

    def __init__(
        self,
        configured: Sequence[AccountSettings],
        organizations: Sequence[tuple[OrganizationSettings, Lister]],
        changed: Changed,
    ) -> None:
        self._configured = configured
        self._organizations = organizations
        self._changed = changed
        self._members: dict[str, Sequence[Member]] = {}
        self._up: set[str] = set()
        self._told: tuple[list[AccountSettings], dict[str, Error]] | None = None
        self._tried = {each.name: asyncio.Event() for each, _ in organizations}
        self._unlisted: dict[str, Error] = {each.name: _still_out(each.name) for each, _ in organizations}

    @property
    def organizations(self) -> list[OrganizationState]:
        """How it stands with each organization."""
        return [
            OrganizationState(each.name, len(self._members.get(each.name, ())), up=each.name in self._up)
            for each, _ in self._organizations
        ]

    async def begin(self) -> None:
        """Tell of the configured accounts, before anything is listed. Raises `Error` as `changed` does."""
        await self._tell()

    @contextlib.asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """List every organization again and again, meanwhile."""
        loops = [asyncio.create_task(self._refresh(*each)) for each in self._organizations]
        try:
            yield
        finally:
            for each in loops:
                each.cancel()
            if loops:
                await asyncio.wait(loops)

    async def tried(self) -> None:
        """Wait until every organization has been listed once, or that has failed."""
        for each in self._tried.values():
            await each.wait()

    async def _refresh(self, organization: OrganizationSettings, lister: Lister) -> None:
        while True:
            good = await self._list(organization, lister)
            self._tried[organization.name].set()
            await asyncio.sleep(organization.refresh if good else min(organization.refresh, RETRY_AFTER))

    async def _list(self, organization: OrganizationSettings, lister: Lister) -> bool:
        name = organization.name
        try:
            members = await lister()
            if members != self._members.get(name):
                log.info(Event.ACCOUNTS_LISTED, account=name, accounts=len(members))
            self._members[name] = members
            self._unlisted.pop(name, None)
            await self._tell()
        except Exception as error:  # noqa: BLE001  # whatever it is, the gateway and the others go on
            self._up.discard(name)
            await self._failed(name, error)
            return False
        self._up.add(name)
        return True

    async def _failed(self, name: str, error: Exception) -> None:
        if isinstance(error, Error):
            log.warning(Event.ORGANIZATION_FAILED, account=name, reason=error.reason, text=error.message)
        else:
            log.error(Event.ORGANIZATION_FAILED, account=name, exc_info=error)
            error = Internal("INTERNAL", "listing the organization's accounts failed inside the gateway")
        if name not in self._members:
            self._unlisted[name] = error
            await self._tell()

    async def _tell(self) -> None:
        organizations = [(each, self._members.get(each.name, ())) for each, _ in self._organizations]
        accounts, unlisted = all_accounts(self._configured, organizations), dict(self._unlisted)
        if (accounts, unlisted) != self._told:
            await self._changed(accounts, unlisted)
            self._told = (accounts, unlisted)


def _still_out(name: str) -> Error:
    return Unavailable("AWS_TIMEOUT", "AWS has not yet told which accounts there are", account=name)
