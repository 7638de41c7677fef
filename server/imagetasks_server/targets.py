"""Accounts and Regions: which targets exist, and which a request means.

An account is a configured name. What shares a view and a budget is (partition, 12-digit account id,
Region): STS is asked once which account the credentials are of. The Regions are configured, or what
EC2's DescribeRegions calls enabled; that list is good for a while, the last known one is used while
it cannot be asked again, and an account about which nothing is known is an error, never "all".

The set of accounts may change while the gateway runs: `replace`.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import structlog

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import Clock
from imagetasks_server.errors import Error, NotFound, PermissionDenied, Unavailable
from imagetasks_server.permission import EVERYTHING, Permission
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

DISCOVERED: Final = pb.REGION_SOURCE_DISCOVERED
CONFIGURED: Final = pb.REGION_SOURCE_CONFIGURED
LAST_KNOWN: Final = pb.REGION_SOURCE_LAST_KNOWN

# Seconds before a failed discovery is tried again by itself, so that a dead STS is not asked by every call.
RETRY_AFTER: Final = 5.0


class TargetKey(NamedTuple):
    """What shares a view and a budget."""

    partition: str
    account_id: str
    region: str


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One account in one Region, under the name it is asked by."""

    account: str
    region: str
    account_id: str = ""
    partition: str = ""

    @property
    def key(self) -> TargetKey:
        """What it shares with other names of the same account."""
        return TargetKey(self.partition, self.account_id, self.region)

    def named(self, task: pb.StoreImageTaskResult) -> pb.StoreImageTaskResult:
        """The task under the account's name as asked: two names may share a view."""
        if task.account == self.account:
            return task
        copy = pb.StoreImageTaskResult()
        copy.CopyFrom(task)
        copy.account = self.account
        return copy

    def message(self) -> pb.Target:
        """The target as in the contract."""
        return pb.Target(
            account=self.account, account_id=self.account_id, region=self.region, partition=self.partition
        )


class Identity(NamedTuple):
    """What STS says of an account's credentials."""

    partition: str
    account_id: str


class Account(Protocol):
    """What must be known of an account to discover its targets."""

    async def identity(self) -> Identity:
        """Ask STS. Raises `Error`."""
        ...

    async def enabled_regions(self) -> Sequence[str]:
        """Ask EC2's DescribeRegions. Raises `Error`."""
        ...


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a request's accounts and Regions mean.

    Attributes:
        targets: In order of account and Region.
        failed: Accounts whose targets could not be found out, and why.
    """

    targets: tuple[Target, ...]
    failed: tuple[tuple[Target, Error], ...] = ()


class AccountState(NamedTuple):
    """What is known of an account.

    Attributes:
        name: The gateway's name of it.
        targets: How many it has.
        source: Where its list of Regions came from.
        up: The newest attempt to find out about it succeeded.
    """

    name: str
    targets: int
    source: "pb.RegionSource.ValueType"
    up: bool


class _Discovery:
    """What is known of one account's targets."""

    def __init__(
        self,
        name: str,
        account: Account,
        configured: Sequence[str],
        clock: Clock,
        *,
        excluded: Collection[str],
        expiry: float,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.account = account
        self.is_known = False
        self.targets: tuple[Target, ...] = ()
        self.source = CONFIGURED if configured else pb.REGION_SOURCE_UNSPECIFIED
        self.error: Error | None = None
        self._configured = tuple(configured)
        self._excluded = frozenset(excluded)
        self._clock = clock
        self._expiry = expiry
        self._changed = changed
        self._good_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None] | None:
        """The discovery that runs, begun if it is due; None if what is known is good."""
        if self._task is None and self._clock() >= self._good_until:
            self._task = asyncio.create_task(self._discover())
            self._task.add_done_callback(self._ended)
        return self._task

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _discover(self) -> None:
        identity = await self.account.identity()
        regions = self._configured or await self.account.enabled_regions()
        self.is_known = True
        self.targets = tuple(
            Target(self.name, region, identity.account_id, identity.partition)
            for region in sorted(set(regions) - self._excluded)
        )
        self.source = CONFIGURED if self._configured else DISCOVERED
        self.error = None
        self._good_until = self._clock() + self._expiry
        self._changed()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        self._good_until = self._clock() + RETRY_AFTER
        if not isinstance(error, Error):
            log.error(Event.ACCOUNT_FAILED, account=self.name, exc_info=error)
            error = Unavailable("INTERNAL", "finding out the account's Regions failed inside the gateway")
        else:
            log.warning(Event.ACCOUNT_FAILED, account=self.name, reason=error.reason, text=error.message)
        self.error = error.at(self.name)
        if self.is_known and self.source == DISCOVERED:
            self.source = LAST_KNOWN


class Targets:
    """All accounts and their Regions.

    Args:
        accounts: By the gateway's names.
        configured: Per account its configured Regions; empty: to be discovered.
        clock: Unix seconds.
        expiry: Seconds for which a discovery is good.
        timeout: Seconds a caller waits for the first one.
        excluded: Per account the Regions that are no targets, enabled or not.

    Attributes:
        version: Another number after each change of what there is.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        configured: Mapping[str, Sequence[str]],
        clock: Clock,
        *,
        expiry: float,
        timeout: float,
        excluded: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._clock = clock
        self._expiry = expiry
        self._timeout = timeout
        self._discoveries: dict[str, _Discovery] = {}
        self._unlisted: dict[str, Error] = {}
        self.version = 0
        self.replace(accounts, configured, excluded or {})

    def replace(
        self,
        accounts: Mapping[str, Account],
        configured: Mapping[str, Sequence[str]],
        excluded: Mapping[str, Collection[str]],
        unlisted: Mapping[str, Error] | None = None,
    ) -> None:
        """From now on these are the accounts. One that is the same object keeps what is known of it.

        Args:
            accounts: As at the start.
            configured: As at the start.
            excluded: As at the start.
            unlisted: Organizations whose accounts could not be listed so far, and why.
        """
        before = self._discoveries
        self._discoveries = {}
        for name, account in sorted(accounts.items()):
            known = before.get(name)
            if known is None or known.account is not account:
                known = _Discovery(
                    name,
                    account,
                    configured.get(name, ()),
                    self._clock,
                    excluded=excluded.get(name, ()),
                    expiry=self._expiry,
                    changed=self._changed,
                )
            self._discoveries[name] = known
        self._unlisted = {name: error.at(name) for name, error in (unlisted or {}).items()}
        for name, known in before.items():
            if self._discoveries.get(name) is not known:
                known.cancel()
        self._changed()

    async def discover(self, names: Iterable[str] | None = None) -> None:
        """Find out what is not known yet, of these accounts or of all, and wait for it for a while."""
        await self._wait_for([self._discoveries[name] for name in names or self._discoveries], self._timeout)

    async def _wait_for(self, wanted: Iterable[_Discovery], seconds: float) -> None:
        # A list that has only expired is renewed meanwhile; nobody waits for that.
        running = [(each, each.start()) for each in wanted]
        unknown = [task for each, task in running if task is not None and not each.is_known]
        if unknown and seconds:
            await asyncio.wait(unknown, timeout=seconds)

    async def resolve(
        self,
        accounts: Sequence[str],
        regions: Sequence[str],
        *,
        wait: bool = True,
        permission: Permission = EVERYTHING,
    ) -> Resolution:
        """The existing pairs of these accounts and Regions that may be seen; empty: all.

        What may not be seen is as if it did not exist.

        Args:
            accounts: Names.
            regions: Names.
            wait: For accounts about which nothing is known yet; else they count as failed so far.
            permission: What the caller may see.

        Raises:
            NotFound: An account does not exist, or none of the accounts has one of the Regions.
            PermissionDenied: The caller may see nothing at all.
            Unavailable: It is not known yet which accounts there are that the caller may see.
        """
        seen = [name for name in (*self._discoveries, *self._unlisted) if permission.sees_account(name)]
        if not seen and not permission.is_everything:
            raise self._nothing_to_see()
        for name in accounts:
            if name not in seen:
                raise self._no_account(name, permission)
        names = sorted(set(accounts)) or seen
        unlisted = self._unlisted
        discoveries = [self._discoveries[name] for name in names if name in self._discoveries]
        await self._wait_for(discoveries, self._timeout if wait else 0.0)
        targets: list[Target] = []
        failed = [(Target(name, ""), unlisted[name]) for name in names if name in unlisted]
        for known in discoveries:
            if known.is_known:
                targets.extend(each for each in known.targets if permission.allows(each.account, each.region))
            else:
                failed.append((Target(known.name, ""), known.error or _still_out(known.name)))
        if not targets and not failed and not self._may_see_more(seen, permission):
            raise self._nothing_to_see()
        if regions:
            found = {target.region for target in targets}
            for region in regions:
                # While an account is unknown, any Region may be one of its.
                if region not in found and not failed:
                    raise NotFound(
                        "UNKNOWN_REGION", f"None of the accounts has Region {region!r}", region=region
                    )
            targets = [target for target in targets if target.region in regions]
        failed.sort(key=lambda each: each[0])
        return Resolution(tuple(targets), tuple(failed))

    def source(self, account: str) -> "pb.RegionSource.ValueType":
        """Where an account's list of Regions came from."""
        known = self._discoveries.get(account)
        return known.source if known else pb.REGION_SOURCE_UNSPECIFIED

    def accounts(self) -> list[AccountState]:
        """How it stands with each account."""
        return [
            AccountState(each.name, len(each.targets), each.source, up=each.is_known and each.error is None)
            for each in self._discoveries.values()
        ]

    def known(self) -> list[Target]:
        """All targets found out so far."""
        return [target for each in self._discoveries.values() for target in each.targets]

    def names(self, key: TargetKey) -> list[str]:
        """The names of accounts that have this target."""
        return [target.account for target in self.known() if target.key == key]

    async def close(self) -> None:
        """End running discoveries."""
        for each in self._discoveries.values():
            await each.close()

    def _changed(self) -> None:
        self.version += 1

    def _may_see_more(self, seen: Sequence[str], permission: Permission) -> bool:
        """Whether a caller sees something of these accounts, or may when more is known of them."""
        if permission.is_everything:
            return True
        discoveries = [self._discoveries[name] for name in seen if name in self._discoveries]
        if len(discoveries) < len(seen) or not all(each.is_known for each in discoveries):
            return True
        return any(
            permission.allows(target.account, target.region)
            for each in discoveries
            for target in each.targets
        )

    def _nothing_to_see(self) -> Error:
        # While an organization is not listed, any account may be one of its; its name is nobody's business.
        if self._unlisted:
            return _still_unlisted()
        return PermissionDenied("NO_TARGETS", "this caller may see no account")

    def _no_account(self, name: str, permission: Permission) -> Error:
        if permission.sees_account(name):
            for organization, error in self._unlisted.items():
                return error if permission.sees_account(organization) else _still_unlisted()
        # The same words whether there is none or it may not be seen.
        return NotFound("UNKNOWN_ACCOUNT", f"There is no account {name!r}", account=name)


def _still_unlisted() -> Error:
    return Unavailable("AWS_TIMEOUT", "AWS has not yet told which accounts there are")


def _still_out(account: str) -> Error:
    return Unavailable("AWS_TIMEOUT", "AWS has not yet told which Regions the account has", account=account)
