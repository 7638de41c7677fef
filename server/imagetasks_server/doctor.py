"""`imagetasks-server doctor`: tells an operator what works and what does not, target by target, with the fix.

A dozen reads: three or four of an account, at most five of a target's own small allowance.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.aws_models import DOCTOR_ACTIONS, LIST_ACTIONS
from imagetasks_server.aws_organizations import list_members
from imagetasks_server.checks import Check, Room, fix_of, seen_of
from imagetasks_server.checks_account import check_account
from imagetasks_server.checks_target import check_target
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Error
from imagetasks_server.members import Member, all_accounts

# Targets that are looked at together.
AT_ONCE: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found.

    Attributes:
        checks: In order of account and Region.
        calls: Calls to AWS, retries included, by service and operation.
    """

    checks: Sequence[Check]
    calls: dict[str, int]

    @property
    def exit_status(self) -> int:
        """0: nothing fails, though there may be warnings. 1: something fails."""
        return int(any(each.status == "fail" for each in self.checks))

    def text(self) -> str:
        """Plain lines: of a target one for all that is well, and one for each thing that is not."""
        lines: list[tuple[str, str, str]] = []
        for (account, region), group in itertools.groupby(
            self.checks, lambda each: (each.account, each.region)
        ):
            place, checks = f"{account} {region}".rstrip(), list(group)
            for status in ("ok", "skip"):
                names = ", ".join(each.name for each in checks if each.status == status)
                if region and names:
                    lines.append((status, place, names))
            for each in checks:
                if not region or each.status in {"warn", "fail"}:
                    lines.append((each.status, place, f"{each.name}: {each.seen}"))
                if each.fix:
                    lines.append(("", "", f"fix: {each.fix}"))
        width = max((len(place) for _, place, _ in lines), default=0)
        return (
            "".join(f"{status:<4}  {place:<{width}}  {text}\n" for status, place, text in lines) + self._sum()
        )

    def json(self) -> str:
        """The same for programs."""
        checks = [dataclasses.asdict(each) for each in self.checks]
        return json.dumps({"checks": checks, "calls": self.calls}, indent=2) + "\n"

    def _sum(self) -> str:
        count = collections.Counter(each.status for each in self.checks)
        calls = ", ".join(f"{number} {name}" for name, number in self.calls.items()) or "none"
        return (
            f"{count['ok']} ok, {count['skip']} not checked, {count['warn']} warnings, "
            f"{count['fail']} failures. Calls to AWS: {calls}.\n"
        )


async def examine(
    settings: Settings, accounts: Collection[str], regions: Collection[str], *, ask_quotas: bool = True
) -> Report:
    """Look at these accounts and Regions; empty: at all.

    Args:
        settings: As for serving.
        accounts: The gateway's names.
        regions: As EC2 calls them.
        ask_quotas: Ask Service Quotas, which the sandbox does not have.

    Raises:
        ConfigError: There is no such account or Region.
    """
    calls: collections.Counter[str] = collections.Counter()

    async def sent(event_name: str, **_: Any) -> None:
        calls[event_name.removeprefix("before-send.").replace(".", ":")] += 1

    async with contextlib.AsyncExitStack() as stack:
        builders = ThreadPoolExecutor(1, thread_name_prefix="clients")
        # Nothing is being built by then, so nothing needs to be waited for.
        stack.callback(builders.shutdown, wait=False)
        aws = Aws(settings, builders, {"before-send": sent})
        doctor = _Doctor(aws, stack, ask_quotas=ask_quotas)
        known = await doctor.find_accounts(settings)
        if unknown := set(accounts).difference(each.name for each in known):
            raise ConfigError(f"there is no account {min(unknown)!r}")
        chosen = [each for each in known if not accounts or each.name in accounts]
        await asyncio.gather(*(doctor.look_at(each, regions) for each in chosen))
    if unknown := set(regions) - doctor.regions:
        raise ConfigError(f"none of the accounts has Region {min(unknown)!r}")
    checks = sorted(doctor.checks, key=lambda each: (each.account, each.region))
    return Report(checks, dict(sorted(calls.items())))


class _Doctor:
    def __init__(self, aws: Aws, stack: contextlib.AsyncExitStack, *, ask_quotas: bool) -> None:
        self.checks: list[Check] = []
        self.regions: set[str] = set()
        self._aws = aws
        self._stack = stack
        self._ask_quotas = ask_quotas
        self._limit = asyncio.Semaphore(AT_ONCE)

    async def find_accounts(self, settings: Settings) -> list[AccountSettings]:
        found: list[tuple[Any, Sequence[Member]]] = []
        for organization in settings.organizations:
            room = Room(organization.name)
            try:
                account = await asyncio.to_thread(self._aws.open, organization, LIST_ACTIONS)
                self._stack.push_async_callback(account.close)
                members = await list_members(account, organization)
            except Error as error:
                fix = fix_of(error, "organizations:ListAccounts and its like")
                self.checks.append(room.fail("organization", seen_of(error), fix))
            else:
                self.checks.append(room.ok("organization", f"{len(members)} active accounts"))
                found.append((organization, members))
        return all_accounts(settings.accounts, found)

    async def look_at(self, settings: AccountSettings, regions: Collection[str]) -> None:
        try:
            account = await asyncio.to_thread(self._aws.open, settings, DOCTOR_ACTIONS)
        except Error as error:
            self.checks.append(Room(settings.name).failed("credentials", error))
            return
        self._stack.push_async_callback(account.close)
        async with self._limit:
            checks, targets = await check_account(account, settings, ask_quotas=self._ask_quotas)
        self.checks += checks
        self.regions.update(targets)

        async def look(region: str) -> None:
            async with self._limit:
                self.checks.extend(await check_target(account, settings.name, region))

        await asyncio.gather(*(look(each) for each in targets if not regions or each in regions))
