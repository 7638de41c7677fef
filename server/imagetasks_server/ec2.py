"""Asks AWS: pages of store tasks, Regions and identities, as the contract's messages and errors."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from botocore.exceptions import ClientError

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.attempts import HOOKS, one_call
from imagetasks_server.aws_errors import is_expiry, translate
from imagetasks_server.aws_models import READ_ACTIONS
from imagetasks_server.aws_session import AwsSession, AwsSessions
from imagetasks_server.config import Settings
from imagetasks_server.errors import Error, FailedPrecondition, Unavailable
from imagetasks_server.targets import Identity, Target
from imagetasks_server.upstream import Page, Query, ReadPage

PAGE_SIZE: Final = 200

_STATES: Final = {
    "InProgress": pb.STORE_TASK_STATE_IN_PROGRESS,
    "Completed": pb.STORE_TASK_STATE_COMPLETED,
    "Failed": pb.STORE_TASK_STATE_FAILED,
}


class AwsAccount:
    """One account at AWS.

    Args:
        name: The gateway's name of it.
        session: Its clients.
        timeout: Seconds to find out its identity and Regions.
    """

    def __init__(self, name: str, session: AwsSession, *, timeout: float) -> None:
        self.name = name
        self.home_region = session.home_region
        self._session = session
        self._timeout = timeout
        self._proven = False

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
        """Build the client of a Region before it is needed. Raises `Error`."""
        try:
            await self._session.client("ec2", region)
        except Exception as error:  # translated, whatever it is
            raise self._translate(error, region) from error

    def read_page(
        self, target: Target, *, pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]
    ) -> ReadPage:
        """The seam for one target: DescribeStoreImageTasks.

        Args:
            target: Whose tasks. Their account's name is this target's.
            pay: Waits until one more attempt is paid; the first of each call was paid before it.
            throttled: Is told each time that EC2 throttles, also where another attempt follows.
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
                with one_call(pay, throttled):
                    answer = await self._call("ec2", target.region, "describe_store_image_tasks", parameters)
                return page_of(target, answer)
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
        await self._session.close()

    async def _call(self, service: str, region: str, operation: str, parameters: Mapping[str, Any]) -> Any:
        client = await self._session.client(service, region)
        call = getattr(client, operation)
        generations = self._session.generations()
        try:
            return await call(**parameters)
        except ClientError as error:
            if not is_expiry(error):
                raise
        self._session.forget(generations)
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
    """

    def __init__(self, settings: Settings, builders: ThreadPoolExecutor) -> None:
        self._timeout = settings.discovery_timeout
        self._sessions = AwsSessions(
            builders,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.page_timeout,
            attempts=settings.attempts,
            hooks=HOOKS,
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
        return AwsAccount(settings.name, session, timeout=self._timeout)


def page_of(target: Target, answer: Mapping[str, Any]) -> Page:
    """EC2's answer, as botocore parsed it, as the contract's messages.

    The messages of a page live in one parent: standalone they take five times the memory.
    """
    results = answer.get("StoreImageTaskResults") or ()
    parent = pb.DescribeStoreImageTasksResponse()
    prefix = f"{target.partition}\0{target.account_id}\0{target.region}\0"
    for result in results:
        _fill(parent.store_image_task_results.add(), result, target, prefix)
    return Page(parent.store_image_task_results, answer.get("NextToken") or None)


def _fill(task: pb.StoreImageTaskResult, result: Mapping[str, Any], target: Target, prefix: str) -> None:
    """What EC2 did not send stays absent; what it sent empty is set empty."""
    started = result.get("TaskStartTime")
    if started is not None:
        task.task_start_time.FromDatetime(started)
    for member, value in (
        ("ami_id", result.get("AmiId")),
        ("bucket", result.get("Bucket")),
        ("s3_object_key", result.get("S3objectKey")),
        ("progress_percentage", result.get("ProgressPercentage")),
        ("ec2_store_task_state", result.get("StoreTaskState")),
        ("store_task_failure_reason", result.get("StoreTaskFailureReason")),
    ):
        if value is not None:
            setattr(task, member, value)
    task.store_task_state = _STATES.get(task.ec2_store_task_state, pb.STORE_TASK_STATE_UNSPECIFIED)
    task.account, task.account_id, task.region = target.account, target.account_id, target.region
    task.task_id = _task_id(prefix, task)


def _task_id(prefix: str, task: pb.StoreImageTaskResult) -> str:
    """The identity's digest: the same in every process that speaks to the same account and Region."""
    start = task.task_start_time
    parts = (
        task.ami_id if task.HasField("ami_id") else None,
        task.bucket if task.HasField("bucket") else None,
        task.s3_object_key if task.HasField("s3_object_key") else None,
        (start.seconds, start.nanos) if task.HasField("task_start_time") else None,
    )
    return hashlib.blake2b(f"{prefix}{parts!r}".encode(), digest_size=12).hexdigest()
