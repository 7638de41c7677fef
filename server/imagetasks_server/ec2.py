"""Asks AWS: pages of store tasks, Regions and identities, as the contract's messages and errors."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.aws_errors import translate
from imagetasks_server.aws_session import AwsSession, SlimLoader
from imagetasks_server.config import AccountSettings, Settings
from imagetasks_server.errors import Error, Unavailable
from imagetasks_server.targets import Identity, Target
from imagetasks_server.upstream import Page, Query, ReadPage

PAGE_SIZE: Final = 200

_STATES: Final = {
    "InProgress": pb.STORE_TASK_STATE_IN_PROGRESS,
    "Completed": pb.STORE_TASK_STATE_COMPLETED,
    "Failed": pb.STORE_TASK_STATE_FAILED,
}


class AwsAccount:
    """One account at AWS."""

    def __init__(self, settings: AccountSettings, session: AwsSession, *, timeout: float) -> None:
        self.name = settings.name
        self._session = session
        self._timeout = timeout
        self._proven = False

    async def identity(self) -> Identity:
        """Which account the credentials are of: STS's GetCallerIdentity."""
        answer = await self._call("sts", self._session.home_region, "get_caller_identity")
        self._proven = True
        # arn:PARTITION:sts::ACCOUNT:assumed-role/...
        return Identity(answer["Arn"].split(":")[1], answer["Account"])

    async def enabled_regions(self) -> Sequence[str]:
        """The Regions that the account has enabled: EC2's DescribeRegions without AllRegions."""
        answer = await self._call("ec2", self._session.home_region, "describe_regions")
        return [region["RegionName"] for region in answer["Regions"]]

    async def warm(self, region: str) -> None:
        """Build the client of a Region before it is needed. Raises `Error`."""
        try:
            await self._session.client("ec2", region)
        except Exception as error:  # translated, whatever it is
            raise translate(error, credentials_proven=self._proven).at(self.name, region) from error

    def read_page(self, target: Target) -> ReadPage:
        """The seam for one target: DescribeStoreImageTasks."""

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
                client = await self._session.client("ec2", target.region)
                answer = await client.describe_store_image_tasks(**parameters)
                return page_of(target, answer)
            except Exception as error:
                raise translate(error, credentials_proven=self._proven).at(
                    target.account, target.region
                ) from error

        return read_page

    async def close(self) -> None:
        """Close the clients."""
        await self._session.close()

    async def _call(self, service: str, region: str, operation: str) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                client = await self._session.client(service, region)
                return await getattr(client, operation)()
        except TimeoutError:
            text = f"{service} in {region} did not answer within {self._timeout:g} s"
            raise Unavailable("AWS_TIMEOUT", text, account=self.name) from None
        except Error:
            raise
        except Exception as error:
            raise translate(error, credentials_proven=self._proven).at(self.name) from error


def open_accounts(settings: Settings, builders: ThreadPoolExecutor) -> dict[str, AwsAccount]:
    """All configured accounts, by name. Asks nothing yet."""
    loader = SlimLoader()
    accounts = {}
    for each in settings.accounts:
        try:
            session = AwsSession(
                each,
                loader,
                builders,
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.page_timeout,
            )
        except Exception as error:
            raise translate(error, credentials_proven=False).at(each.name) from error
        accounts[each.name] = AwsAccount(each, session, timeout=settings.discovery_timeout)
    return accounts


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
