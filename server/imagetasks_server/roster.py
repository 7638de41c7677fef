"""Which accounts there are: the configured ones, and those of organizations, kept up to date by a loop each.

A listing that fails keeps the accounts that are known, and is tried again soon. Until the first one
succeeds the organization itself stands among the accounts, as one that cannot be asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
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
# What comes into force in the same moment may follow.
Changed: TypeAlias = Callable[..., Awaitable[None]]


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
        self._loops: dict[str, asyncio.Task[None]] = {}
        # `changed` takes a while, and hears of one state after the other.
        self._lock = asyncio.Lock()

    @property
    def unlisted(self) -> Mapping[str, Error]:
        """The organizations that could not be listed so far, and why."""
        return self._unlisted

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
        self._start()
        try:
            yield
        finally:
            await self._end(self._loops)

    async def replace(
        self,
        configured: Sequence[AccountSettings],
        organizations: Sequence[tuple[OrganizationSettings, Lister]],
        switch: Callable[[], None] = lambda: None,
    ) -> None:
        """From now on these are meant, and in the same moment `switch` is called. For while `refreshing`.

        An organization that is as before goes on as before; of one that differs the accounts that are known
        stay until it is listed, which is begun at once.

        Raises:
            Error: As `changed` does. Nothing has changed then.
        """
        async with self._lock:
            names = {each.name for each, _ in organizations}
            members = {name: found for name, found in self._members.items() if name in names}
            unlisted = {
                name: self._unlisted.get(name, _still_out(name)) for name in sorted(names - members.keys())
            }
            accounts = _accounts(configured, organizations, members)
            await self._changed(accounts, unlisted, switch)
            before = {each.name: each for each, _ in self._organizations}
            same = {each.name for each, _ in organizations if before.get(each.name) == each}
            await self._end([name for name in self._loops if name not in same])
            for name in self._tried.keys() - names:
                self._tried.pop(name).set()
            for name in names - self._tried.keys():
                self._tried[name] = asyncio.Event()
            self._configured, self._organizations = configured, organizations
            self._members, self._unlisted = members, unlisted
            self._told = (accounts, dict(unlisted))
            self._start()

    def _start(self) -> None:
        for each in self._organizations:
            name = each[0].name
            if name not in self._loops:
                self._loops[name] = asyncio.create_task(self._refresh(*each))

    async def _end(self, names: Iterable[str]) -> None:
        loops = [self._loops.pop(name) for name in list(names)]
        for each in loops:
            each.cancel()
        if loops:
            await asyncio.wait(loops)

    async def tried(self) -> None:
        """Wait until every organization has been listed once, or that has failed."""
        for each in list(self._tried.values()):
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
        async with self._lock:
            accounts = _accounts(self._configured, self._organizations, self._members)
            unlisted = dict(self._unlisted)
            if (accounts, unlisted) != self._told:
                await self._changed(accounts, unlisted)
                self._told = (accounts, unlisted)


def _accounts(
    configured: Sequence[AccountSettings],
    organizations: Sequence[tuple[OrganizationSettings, Lister]],
    members: Mapping[str, Sequence[Member]],
) -> list[AccountSettings]:
    return all_accounts(configured, [(each, members.get(each.name, ())) for each, _ in organizations])


def _still_out(name: str) -> Error:
    return Unavailable("AWS_TIMEOUT", "AWS has not yet told which accounts there are", account=name)
