"""One suite on the fake EC2 and on the sandbox through aioboto3, so that the fake stays honest.

Both have one busy Region of more than two pages, one that a policy denies, one that is not enabled, and
a second account. A few tests know more of the one or the other; they say so.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from fake_ec2 import FakeEc2, Task, image
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_sandbox.launch import RunningSandbox, sandbox
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws, AwsAccount
from imagetasks_server.errors import Error, FailedPrecondition, PermissionDenied
from imagetasks_server.targets import Target
from imagetasks_server.upstream import ImagesNotFound, Page, PageExpired, Query, ReadPage

HOME, DENIED, NOT_ENABLED = "us-east-1", "sa-east-1", "me-central-1"
MAIN, OTHER = ("main", "123456789012"), ("images-dev", "111122223333")
BUSY_TASKS = 450


@dataclass
class Ec2:
    """What stands behind the seam.

    Attributes:
        read_page_of: The seam for an account, a Region, and the gateway's name of the account.
        image_without_task: An AMI of the busy Region that was never stored.
    """

    read_page_of: Callable[[tuple[str, str], str, str], ReadPage]
    image_without_task: str

    async def read(
        self,
        query: Query = Query(),  # noqa: B008  # frozen
        token: str | None = None,
        *,
        account: tuple[str, str] = MAIN,
        region: str = HOME,
        name: str = "",
    ) -> Page:
        return await self.read_page_of(account, region, name)(query, token)

    async def pages(self, **where: Any) -> list[Page]:
        pages = [await self.read(**where)]
        while pages[-1].next_token:
            pages.append(await self.read(token=pages[-1].next_token, **where))
        return pages

    async def tasks(self, **where: Any) -> list[pb.StoreImageTaskResult]:
        return [task for page in await self.pages(**where) for task in page.tasks]

    async def error(self, *arguments: Any, **where: Any) -> Error:
        with pytest.raises(Error) as caught:
            await self.read(*arguments, **where)
        return caught.value


def fake(clock: VirtualClock) -> Ec2:
    """The fake, furnished as the sandbox furnishes itself."""
    targets = [(MAIN, HOME), (MAIN, DENIED), (MAIN, NOT_ENABLED), (OTHER, HOME)]
    places = {(who, region): FakeEc2(clock, Target(who[0], region, who[1], "aws")) for who, region in targets}
    places[MAIN, DENIED].denied = True
    places[MAIN, NOT_ENABLED].enabled = False
    rng = random.Random(1)
    for ec2, first, count in ((places[MAIN, HOME], 0, BUSY_TASKS), (places[OTHER, HOME], 5000, 5)):
        for number in range(count):
            task = ec2.add(
                image(first + number // 3), age=rng.uniform(0, 30 * 86400), bucket=f"bucket-{number % 3}"
            )
            if number % 10 == 0:
                ec2.end(task, failed="AccessDenied: Access Denied")
            elif number > 2:
                ec2.end(task)
    places[MAIN, HOME].images.add(image(10_000))

    def read_page_of(account: tuple[str, str], region: str, name: str) -> ReadPage:
        ec2 = places[account, region]
        ec2.target = Target(name or account[0], region, account[1], "aws")
        return ec2.read_page

    return Ec2(read_page_of, image(10_000))


@pytest.fixture(scope="module")
def running_sandbox() -> Iterator[tuple[RunningSandbox, str]]:
    """The sandbox, with a task in progress and an AMI that was never stored."""
    # So slow that nothing moves during a test.
    with sandbox("--seed", "--no-throttle", "--speed", "0.001") as running:
        yield running, furnished(running)


def furnished(running: RunningSandbox) -> str:
    environment = running.ready["environment"]

    def client(service: str) -> Any:
        return boto3.client(
            service,
            region_name=HOME,
            endpoint_url=running.endpoint,
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )

    with contextlib.closing(client("ec2")) as ec2, contextlib.closing(client("s3")) as s3:
        s3.create_bucket(Bucket="contract")
        stored, unused = (ec2.register_image(Name=name)["ImageId"] for name in ("stored", "unused"))
        ec2.create_store_image_task(ImageId=stored, Bucket="contract")
        return str(unused)


async def opened(running: RunningSandbox, unused: str, stack: Any, monkeypatch: pytest.MonkeyPatch) -> Ec2:
    """The sandbox, by the gateway's own way to AWS."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in running.ready["environment"].items():
        monkeypatch.setenv(variable, value)
    accounts = [
        {"name": each["name"], "role_arn": each.get("role_arn")} for each in running.ready["accounts"]
    ]
    settings = Settings.model_validate({"accounts": accounts})
    aws = Aws(settings, stack.enter_context(ThreadPoolExecutor(1)))
    by_id: dict[str, AwsAccount] = {}
    for each in settings.accounts:
        account = await asyncio.to_thread(aws.open, each)
        stack.push_async_callback(account.close)
        by_id[(await account.identity()).account_id] = account

    async def pay() -> None:
        """Of attempts after the first; there are none here."""

    def read_page_of(account: tuple[str, str], region: str, name: str) -> ReadPage:
        target = Target(name or account[0], region, account[1], "aws")
        return by_id[account[1]].read_page(target, pay=pay, throttled=lambda: None)

    return Ec2(read_page_of, unused)


@pytest.fixture(params=["fake", "sandbox"])
async def ec2(
    request: pytest.FixtureRequest,
    clock: VirtualClock,
    running_sandbox: tuple[RunningSandbox, str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Ec2]:
    if request.param == "fake":
        yield fake(clock)
    else:
        async with contextlib.AsyncExitStack() as stack:
            yield await opened(*running_sandbox, stack, monkeypatch)


def start(task: pb.StoreImageTaskResult) -> int:
    return task.task_start_time.ToNanoseconds()


async def test_a_list_comes_in_pages_of_200_newest_first_each_task_once(ec2: Ec2) -> None:
    pages = await ec2.pages()
    assert [len(page.tasks) for page in pages[:2]] == [200, 200]
    assert 50 <= len(pages[2].tasks) <= 60
    assert len(pages) == 3
    tasks = [task for page in pages for task in page.tasks]
    assert [start(task) for task in tasks] == sorted(map(start, tasks), reverse=True)
    assert len({task.task_id for task in tasks}) == len(tasks)


async def test_a_short_list_has_no_token(ec2: Ec2) -> None:
    page = await ec2.read(account=OTHER)
    assert page.tasks
    assert page.next_token is None


async def test_every_task_is_complete_with_its_target(ec2: Ec2) -> None:
    for task in await ec2.tasks():
        assert (task.account, task.account_id, task.region) == (*MAIN, HOME)
        assert len(task.ami_id) == 21
        assert task.s3_object_key.endswith(f"{task.ami_id}.bin")
        assert task.bucket
        assert 0 <= task.progress_percentage <= 100
        # EC2 sends milliseconds.
        assert task.task_start_time.nanos % 1_000_000 == 0
        assert task.task_id


async def test_states_are_told_with_ec2s_own_word(ec2: Ec2) -> None:
    states = {(task.store_task_state, task.ec2_store_task_state) for task in await ec2.tasks()}
    assert states == {
        (pb.STORE_TASK_STATE_IN_PROGRESS, "InProgress"),
        (pb.STORE_TASK_STATE_COMPLETED, "Completed"),
        (pb.STORE_TASK_STATE_FAILED, "Failed"),
    }


async def test_a_failure_reason_is_absent_empty_or_told_as_ec2_sent_it(ec2: Ec2) -> None:
    for task in await ec2.tasks():
        has_reason = task.HasField("store_task_failure_reason")
        match task.ec2_store_task_state:
            case "InProgress":
                assert not has_reason
            case "Completed":
                assert has_reason
                assert task.store_task_failure_reason == ""
                assert task.progress_percentage == 100
            case "Failed":
                assert task.store_task_failure_reason


async def test_by_image_id_only_the_newest_task_is_told(ec2: Ec2) -> None:
    tasks = await ec2.tasks()
    ids = [task.ami_id for task in tasks]
    several = sorted({each for each in ids if ids.count(each) > 1})[:20]
    assert len(several) == 20
    page = await ec2.read(Query(image_ids=tuple(several)))
    assert page.next_token is None
    newest = {}
    for task in reversed(tasks):
        newest[task.ami_id] = task.task_id
    assert {task.ami_id: task.task_id for task in page.tasks} == {each: newest[each] for each in several}
    assert len(page.tasks) == 20


async def test_an_image_that_was_never_stored_is_known_and_has_no_task(ec2: Ec2) -> None:
    page = await ec2.read(Query(image_ids=(ec2.image_without_task,)))
    assert list(page.tasks) == []


async def test_unknown_images_are_named_and_nothing_else_is_told(ec2: Ec2) -> None:
    unknown = ("ami-12345678", "ami-0fffffffffffffff0")
    known = (await ec2.read()).tasks[0].ami_id
    error = await ec2.error(Query(image_ids=(*unknown, known)))
    assert isinstance(error, ImagesNotFound)
    assert set(error.image_ids) == set(unknown)
    assert error.aws_code == "InvalidAMIID.NotFound"
    assert (error.account, error.region) == (MAIN[0], HOME)


async def test_one_unknown_image_is_told_in_the_singular(ec2: Ec2) -> None:
    error = await ec2.error(Query(image_ids=("ami-12345678",)))
    assert error.message == "The image id '[ami-12345678]' does not exist"


async def test_an_image_of_another_account_is_unknown(ec2: Ec2) -> None:
    theirs = (await ec2.read(account=OTHER)).tasks[0].ami_id
    assert isinstance(await ec2.error(Query(image_ids=(theirs,))), ImagesNotFound)


@pytest.mark.parametrize("image_id", ["ami-1", "ami-", "image-12345678", "ami-123456789abcdefgh"])
async def test_a_malformed_image_id_is_told(ec2: Ec2, image_id: str) -> None:
    error = await ec2.error(Query(image_ids=(image_id,)))
    assert (error.reason, error.aws_code) == ("IMAGE_ID_MALFORMED", "InvalidAMIID.Malformed")


async def test_more_than_20_image_ids_are_refused(ec2: Ec2) -> None:
    ids = [task.ami_id for task in await ec2.tasks()]
    error = await ec2.error(Query(image_ids=tuple(dict.fromkeys(ids))[:21]))
    assert (error.reason, error.aws_code) == ("UPSTREAM_CONTRACT", "InvalidParameterValue")


@pytest.mark.parametrize("damage", [lambda token: token[:-1] + "~", lambda _: "nonsense"])
async def test_a_token_that_is_none_is_refused(ec2: Ec2, damage: Callable[[str], str]) -> None:
    token = (await ec2.read()).next_token
    assert token
    error = await ec2.error(token=damage(token))
    assert isinstance(error, PageExpired)
    assert error.aws_code == "InvalidPaginationToken"


async def test_a_dry_run_that_is_permitted_says_so_as_an_error(ec2: Ec2) -> None:
    error = await ec2.error(Query(dry_run=True))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.aws_code) == ("DRY_RUN_OPERATION", "DryRunOperation")


async def test_a_dry_run_comes_before_whether_an_image_exists(ec2: Ec2) -> None:
    error = await ec2.error(Query(image_ids=("ami-12345678",), dry_run=True))
    assert error.reason == "DRY_RUN_OPERATION"


@pytest.mark.parametrize("query", [Query(), Query(dry_run=True), Query(image_ids=("ami-12345678",))])
async def test_what_a_policy_denies_is_denied_first_and_without_the_blob(ec2: Ec2, query: Query) -> None:
    error = await ec2.error(query, region=DENIED)
    assert isinstance(error, PermissionDenied)
    assert (error.reason, error.aws_code) == ("AWS_UNAUTHORIZED_OPERATION", "UnauthorizedOperation")
    assert error.message == ("You are not authorized to perform this operation. (DescribeStoreImageTasks)")
    assert (error.account, error.region) == (MAIN[0], DENIED)


async def test_a_region_that_is_not_enabled_is_told_from_bad_credentials(ec2: Ec2) -> None:
    error = await ec2.error(region=NOT_ENABLED)
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.aws_code) == ("AWS_REGION_NOT_ENABLED", "AuthFailure")


async def test_a_tasks_id_is_the_same_at_each_read_and_under_each_name(ec2: Ec2) -> None:
    first, second = await ec2.read(), await ec2.read(name="another-name")
    assert [task.task_id for task in first.tasks] == [task.task_id for task in second.tasks]
    assert {task.account for task in second.tasks} == {"another-name"}


async def test_no_two_accounts_have_a_task_id_in_common(ec2: Ec2) -> None:
    ours, theirs = await ec2.tasks(), await ec2.tasks(account=OTHER)
    assert not {task.task_id for task in ours} & {task.task_id for task in theirs}


def test_a_member_that_is_not_sent_is_absent(clock_free: FakeEc2) -> None:
    """Of the fake only: the sandbox always sends them."""
    clock_free.tasks.append(Task(None, None, bucket=None, state=None, percentage=None))
    (task,) = asyncio.run(clock_free.read_page(Query())).tasks
    for member in (
        "ami_id",
        "task_start_time",
        "bucket",
        "s3_object_key",
        "progress_percentage",
        "ec2_store_task_state",
        "store_task_failure_reason",
    ):
        assert not task.HasField(member)
    assert task.store_task_state == pb.STORE_TASK_STATE_UNSPECIFIED


def test_a_state_that_ec2_adds_later_is_not_lost(clock_free: FakeEc2) -> None:
    """Of the fake only."""
    clock_free.add(state="Paused")
    (task,) = asyncio.run(clock_free.read_page(Query())).tasks
    assert (task.store_task_state, task.ec2_store_task_state) == (pb.STORE_TASK_STATE_UNSPECIFIED, "Paused")


@pytest.fixture
def clock_free() -> FakeEc2:
    return FakeEc2(lambda: 1_800_000_000.0)
