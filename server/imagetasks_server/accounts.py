"""The accounts there are now, each with its sessions at AWS, opened when it comes and closed when it goes."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.assembly import ReadableAccount
from imagetasks_server.errors import Error
from imagetasks_server.targets import Targets


class OpenAccount(ReadableAccount, Protocol):
    """An account with connections: `ec2.AwsAccount`."""

    async def warm(self, region: str) -> None:
        """Get ready to be asked in a Region. Raises `Error`."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class Accounts(Mapping[str, OpenAccount]):
    """The accounts there are now, by the gateway's names.

    Args:
        open_account: Opens one. May block: it runs on a thread. Raises `Error`.
    """

    def __init__(self, open_account: Callable[[AccountSettings], OpenAccount]) -> None:
        self._open_account = open_account
        self._open: dict[str, OpenAccount] = {}
        self._settings: dict[str, AccountSettings] = {}
        self._lock = asyncio.Lock()

    def __getitem__(self, name: str) -> OpenAccount:
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    async def replace(
        self,
        targets: Targets,
        wanted: Sequence[AccountSettings],
        unlisted: Mapping[str, Error] | None = None,
        switch: Callable[[], None] = lambda: None,
    ) -> None:
        """From now on these are the accounts; one that is configured as before is left as it is.

        Args:
            targets: Is told.
            wanted: The accounts, no name twice.
            unlisted: Organizations whose accounts could not be listed so far, and why.
            switch: Called in the very moment in which they come into force.

        Raises:
            Error: One cannot be opened. Nothing has changed then.
        """
        async with self._lock:
            new = [each for each in wanted if self._settings.get(each.name) != each]
            opened = await asyncio.to_thread(lambda: {each.name: self._open_account(each) for each in new})
            before = self._open
            self._open = {each.name: opened.get(each.name) or before[each.name] for each in wanted}
            self._settings = {each.name: each for each in wanted}
            targets.replace(
                self._open,
                {each.name: each.regions for each in wanted},
                {each.name: each.exclude_regions for each in wanted},
                unlisted,
            )
            switch()
            await _close(each for name, each in before.items() if self._open.get(name) is not each)

    async def close(self) -> None:
        """Close all."""
        await _close(self._open.values())
        self._open = {}


async def _close(accounts: Iterable[OpenAccount]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for each in accounts:
            stack.push_async_callback(each.close)
