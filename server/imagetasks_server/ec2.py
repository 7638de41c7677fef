"""Asks AWS: pages of store tasks, Regions and identities, as the contract's messages and errors."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from botocore.exceptions import ClientError

from imagetasks_server import attempts, aws_regions
from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.aws_access import AwsSessions, Hooks
from imagetasks_server.aws_errors import is_expiry, translate
from imagetasks_server.aws_models import READ_ACTIONS
from imagetasks_server.aws_parser import BODY
from imagetasks_server.aws_session import AwsSession
from imagetasks_server.config import Settings
from imagetasks_server.errors import Error, FailedPrecondition, Unavailable
from imagetasks_server.targets import Identity, Target
from imagetasks_server.task_xml import page_of
from imagetasks_server.turns import Turns
from imagetasks_server.upstream import Page, Query, ReadPage

PAGE_SIZE: Final = 200


class AwsAccount:
    """One account at AWS.

    Args:
        name: The gateway's name of it.
        session: Its clients.
        begins: Turns, taken to begin a call.
        decodes: Turns, taken to decode an answer: it need not queue behind calls that begin.
        timeout: Seconds to find out its identity and Regions.
    """

    def __init__(
        self, name: str, session: AwsSession, begins: Turns, decodes: Turns, *, timeout: float
    ) -> None:
        self.name = name
        self.home_region = session.home_region
        self._session = session
        self._begins = begins
        self._decodes = decodes
        self._timeout = timeout
        self._proven = False
        self._connecting: set[asyncio.Task[None]] = set()

    async def identity(self) -> Identity:
        """Which account the credentials are of: STS's GetCallerIdentity."""
        try:
            answer = await self.ask("sts", self.home_region, "get_caller_identity")
        except FailedPrecondition:
            self._proven = False
            raise
        self._proven = True
        # arn:PARTITION:sts::ACCOUNT:assumed-role/...
        return Identity(answer["Arn"].split(":")[1], answer["Account"])

    async def enabled_regions(self) -> Sequence[str]:
        """The Regions that the account has enabled: EC2's DescribeRegions without AllRegions."""
        answer = await self.ask("ec2", self.home_region, "describe_regions")
        return [region["RegionName"] for region in answer["Regions"]]

    async def warm(self, region: str) -> None:
        """Get ready to be asked in a Region: build the client, and begin to connect. Raises `Error`."""
        try:
            await self._session.client("ec2", region)
        except Exception as error:  # translated, whatever it is
            raise self._translate(error, region) from error
        connecting = asyncio.create_task(self._connect(region))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    def read_page(
        self, target: Target, *, pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]
    ) -> ReadPage:
        """The seam for one target: DescribeStoreImageTasks.

        Args:
            target: Whose tasks. Their account's name is this target's.
            pay: Waits until one more attempt is paid; the first of each call was paid before it. Raises
                `Exhausted` if that would take too long.
            throttled: Is told each time that EC2 throttles.
        """

        async def read_page(query: Query, token: str | None) -> Page:
            parameters: dict[str, Any] = {}
            if query.image_ids:
                # EC2 refuses MaxResults together with ImageIds.
                parameters["ImageIds"] = list(query.image_ids)
            else:
                parameters["MaxResults"] = PAGE_SIZE
            if query.dry_run:
                parameters["DryRun"] = True
            if token is not None:
                parameters["NextToken"] = token
            try:
                await self._begins.take()
                with attempts.one_call(pay, throttled):
                    answer = await self._call("ec2", target.region, "describe_store_image_tasks", parameters)
                await self._decodes.take()
                return page_of(answer[BODY], target)
            except Exception as error:
                raise self._translate(error, target.region).at(target.account, target.region) from error

        return read_page

    async def ask(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        """Any call, as botocore names it, and botocore's answer. Raises `Error`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._call(service, region, operation, parameters)
        except TimeoutError:
            text = f"{service} in {region} did not answer within {self._timeout:g} s"
            raise Unavailable("AWS_TIMEOUT", text, account=self.name) from None
        except Exception as error:
            raise self._translate(error, region) from error

    async def close(self) -> None:
        """Close the clients."""
        for each in self._connecting:
            each.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await self._session.close()

    async def _connect(self, region: str) -> None:
        # If it fails, nobody waits for it; the first call will meet the fault and tell.
        with contextlib.suppress(Exception):
            await self._session.connect(region)

    async def _call(self, service: str, region: str, operation: str, parameters: Mapping[str, Any]) -> Any:
        client = await self._session.client(service, region)
        call = getattr(client, operation)
        generation = self._session.generation()
        with aws_regions.in_region(region):
            try:
                return await call(**parameters)
            except ClientError as error:
                if not is_expiry(error):
                    raise
            self._session.forget(generation)
            return await call(**parameters)

    def _translate(self, error: Exception, region: str) -> Error:
        if isinstance(error, Error):  # of the payment
            return error
        return translate(error, credentials_proven=self._proven, account=self.name, region=region)


class Aws:
    """Opens accounts.

    Args:
        settings: Time limits and attempts.
        builders: Where clients are built, one at a time.
        hooks: Botocore's events and who hears them besides.
    """

    def __init__(self, settings: Settings, builders: ThreadPoolExecutor, hooks: Hooks | None = None) -> None:
        self._timeout = settings.discovery_timeout
        self._begins, self._decodes = Turns(), Turns()
        self._sessions = AwsSessions(
            builders,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.page_timeout,
            attempts=settings.attempts,
            hooks={**attempts.HOOKS, **aws_regions.HOOKS, **(hooks or {})},
        )

    def open(
        self,
        settings: AccountSettings | OrganizationSettings,
        actions: Sequence[str] = READ_ACTIONS,
    ) -> AwsAccount:
        """An account. Asks nothing yet; reads configuration files, so it may block.

        Args:
            settings: The account, or an organization: then the account that can list its accounts.
            actions: IAM's actions that it will be used for.

        Raises:
            Error: Its profile does not exist, for example.
        """
        try:
            session = self._sessions.open(settings, settings.role_arn, actions)
        except Exception as error:
            raise translate(error, credentials_proven=False, account=settings.name) from error
        return AwsAccount(settings.name, session, self._begins, self._decodes, timeout=self._timeout)
