"""An account at AWS: who is asked where with whose credentials, what is paid, and what is renewed."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiobotocore.retries.standard
import pytest
from botocore.retries.standard import ExponentialBackoff
from scripted_aws import ACCOUNT, ScriptedAws, scripted_aws

from imagetasks_server import aws_http
from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.aws_models import DOCTOR_ACTIONS, LIST_ACTIONS, OPERATIONS
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws, AwsAccount
from imagetasks_server.errors import Error, Exhausted, Unavailable
from imagetasks_server.targets import Target
from imagetasks_server.upstream import Query, ReadPage

ROLE = f"arn:aws:iam::{ACCOUNT}:role/imagetasks"
AMBIENT = "AKIAAMBIENT"
TARGET = Target("a", "eu-central-1", ACCOUNT, "aws")


@pytest.fixture(autouse=True)
def _ambient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ambient credentials from the environment, and nothing else of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", AMBIENT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = ExponentialBackoff(random=lambda: 0.0)
    monkeypatch.setattr(aiobotocore.retries.standard, "ExponentialBackoff", lambda: backoff)


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with scripted_aws() as aws:
        yield aws


class Opener:
    """Opens accounts that are closed when the test ends."""

    def __init__(self, builders: ThreadPoolExecutor) -> None:
        self._builders = builders
        self._opened: list[AwsAccount] = []
        self._aws: dict[tuple[Any, ...], Aws] = {}

    async def __call__(self, *args: Any, **keys: Any) -> AwsAccount:
        return await asyncio.to_thread(self.now, *args, **keys)

    def now(self, aws: ScriptedAws | None = None, actions: Any = None, **keys: Any) -> AwsAccount:
        """Blocks."""
        if aws is not None:
            keys = {"endpoint_url": aws.url, "sts_endpoint_url": aws.url, **keys}
        knobs = {name: keys.pop(name) for name in ("attempts", "page_timeout") if name in keys}
        opener = self._aws.setdefault(tuple(knobs.items()), Aws(Settings(**knobs), self._builders))
        settings: AccountSettings | OrganizationSettings
        if "role_name" in keys:
            settings = OrganizationSettings(**{"name": "a", **keys})
        else:
            settings = AccountSettings(**{"name": "a", **keys})
        account = opener.open(settings, actions) if actions else opener.open(settings)
        self._opened.append(account)
        return account

    async def close(self) -> None:
        for each in self._opened:
            await each.close()


@pytest.fixture
async def opener() -> AsyncIterator[Opener]:
    with ThreadPoolExecutor(1) as builders:
        opener = Opener(builders)
        yield opener
        await opener.close()


class Till:
    """What was paid, and how often EC2 throttled."""

    def __init__(self) -> None:
        self.paid = 0
        self.throttles = 0

    async def pay(self) -> None:
        self.paid += 1

    def throttled(self) -> None:
        self.throttles += 1

    def of(self, account: AwsAccount) -> ReadPage:
        return account.read_page(TARGET, pay=self.pay, throttled=self.throttled)


async def refused(call: Any) -> Error:
    with pytest.raises(Error) as caught:
        await call
    return caught.value


# Credentials.


async def test_without_a_role_the_ambient_credentials_are_used(aws: ScriptedAws, opener: Opener) -> None:
    account = await opener(aws)
    assert await account.identity() == ("aws", ACCOUNT)
    assert await account.enabled_regions() == ["eu-central-1", "us-east-1"]
    assert {each.key for each in aws.requests} == {AMBIENT}
    assert {each.region for each in aws.requests} == {"us-east-1"}


async def test_a_role_is_assumed_once_with_its_external_id_and_narrowed_to_what_is_asked(
    aws: ScriptedAws, opener: Opener
) -> None:
    account = await opener(aws, role_arn=ROLE, external_id="secret/1")
    await account.identity()
    await Till().of(account)(Query(), None)
    (assumed,) = aws.asked("AssumeRole")
    assert assumed.key == AMBIENT
    assert (assumed.form["RoleArn"], assumed.form["ExternalId"]) == (ROLE, "secret/1")
    (statement,) = json.loads(assumed.form["Policy"])["Statement"]
    assert statement["Action"] == ["ec2:DescribeRegions", "ec2:DescribeStoreImageTasks"]
    (read,) = aws.asked("DescribeStoreImageTasks")
    assert (read.key, read.region) == ("ASIAROLE000000000001", "eu-central-1")


async def test_the_doctor_and_whoever_lists_accounts_may_do_theirs_and_no_more(
    aws: ScriptedAws, opener: Opener
) -> None:
    await (await opener(aws, actions=DOCTOR_ACTIONS, role_arn=ROLE)).identity()
    await (await opener(aws, actions=LIST_ACTIONS, role_arn=ROLE, role_name="r")).identity()
    policies = [json.loads(each.form["Policy"])["Statement"][0]["Action"] for each in aws.asked("AssumeRole")]
    assert policies == [list(DOCTOR_ACTIONS), list(LIST_ACTIONS)]
    assert "ExternalId" not in aws.asked("AssumeRole")[0].form


async def test_a_profile_is_used_and_one_that_is_not_there_is_said_at_once(
    aws: ScriptedAws, opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile p]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\nregion = eu-west-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    account = await opener(aws, profile="p")
    assert account.home_region == "eu-west-1"
    await account.identity()
    assert {(each.key, each.region) for each in aws.requests} == {("AKIAPROFILE", "eu-west-1")}
    with pytest.raises(Error) as caught:
        await opener(aws, profile="q")
    assert caught.value.reason == "AWS_CREDENTIALS_UNAVAILABLE"


async def test_without_any_credentials_it_says_so(
    aws: ScriptedAws, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = await refused((await opener(aws)).identity())
    assert (error.reason, error.account) == ("AWS_CREDENTIALS_UNAVAILABLE", "a")
    # Nothing is kept of it: they may come.
    assert not aws.requests


async def test_a_role_that_may_not_be_assumed_is_told_once_in_our_own_words(
    aws: ScriptedAws, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    aws.refuse("AssumeRole", "AccessDenied", status=403)
    error = await refused((await opener(aws, role_arn=ROLE)).identity())
    assert (error.reason, error.message) == (
        "AWS_UNAUTHORIZED_OPERATION",
        "AWS says AccessDenied (AssumeRole)",
    )
    assert not caplog.records


# Expiry.


async def test_what_has_expired_is_found_anew_once_and_the_second_attempt_is_paid(
    aws: ScriptedAws, opener: Opener
) -> None:
    account, till = await opener(aws, role_arn=ROLE), Till()
    aws.refuse("DescribeStoreImageTasks", "RequestExpired")
    await till.of(account)(Query(), None)
    keys = [each.key for each in aws.asked("DescribeStoreImageTasks")]
    assert keys == ["ASIAROLE000000000001", "ASIAROLE000000000002"]
    assert till.paid == 1


async def test_what_expires_twice_is_unavailable_and_says_when_to_come_back(
    aws: ScriptedAws, opener: Opener
) -> None:
    account, till = await opener(aws, role_arn=ROLE), Till()
    aws.refuse("DescribeStoreImageTasks", "ExpiredToken", times=2)
    error = await refused(till.of(account)(Query(), None))
    assert (type(error), error.reason) == (Unavailable, "AWS_CREDENTIALS_EXPIRED")
    assert error.retry_after
    assert (len(aws.asked("DescribeStoreImageTasks")), till.paid) == (2, 1)


async def test_targets_that_find_the_expiry_together_renew_once(aws: ScriptedAws, opener: Opener) -> None:
    account, till = await opener(aws, role_arn=ROLE), Till()
    read = till.of(account)
    await read(Query(), None)
    aws.expired.add("ASIAROLE000000000001")
    await asyncio.gather(*(read(Query(), None) for _ in range(8)))
    assert len(aws.asked("AssumeRole")) == 2


async def test_the_credentials_that_assume_the_role_are_found_anew_too(
    aws: ScriptedAws, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await opener(aws, role_arn=ROLE), await opener(aws, role_arn=ROLE)
    await first.identity()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIARENEWED")
    aws.refuse("AssumeRole", "ExpiredTokenException")
    await second.identity()
    assert [each.key for each in aws.asked("AssumeRole")] == [AMBIENT, AMBIENT, "AKIARENEWED"]


# Attempts.


async def test_every_attempt_but_the_first_is_paid(aws: ScriptedAws, opener: Opener) -> None:
    account, till = await opener(aws), Till()
    aws.refuse("DescribeStoreImageTasks", "InternalError", status=500, times=2)
    await till.of(account)(Query(), None)
    assert len(aws.asked("DescribeStoreImageTasks")) == 3
    assert (till.paid, till.throttles) == (2, 0)


async def test_a_throttle_is_told_and_not_tried_again(aws: ScriptedAws, opener: Opener) -> None:
    account, till = await opener(aws, attempts=4), Till()
    aws.refuse("DescribeStoreImageTasks", "InternalError", status=500)
    aws.refuse("DescribeStoreImageTasks", "RequestLimitExceeded", status=503, times=10)
    error = await refused(till.of(account)(Query(), None))
    assert (error.reason, error.aws_code) == ("AWS_THROTTLED", "RequestLimitExceeded")
    assert len(aws.asked("DescribeStoreImageTasks")) == 2
    assert (till.paid, till.throttles) == (1, 1)


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_it_is_tried_as_often_as_configured(aws: ScriptedAws, opener: Opener, attempts: int) -> None:
    account, till = await opener(aws, attempts=attempts), Till()
    aws.refuse("DescribeStoreImageTasks", "InternalError", status=500, times=10)
    error = await refused(till.of(account)(Query(), None))
    assert error.reason == "AWS_INTERNAL_ERROR"
    assert len(aws.asked("DescribeStoreImageTasks")) == attempts
    assert till.paid == attempts - 1


async def test_where_no_attempt_can_be_paid_soon_what_failed_is_the_answer(
    aws: ScriptedAws, opener: Opener
) -> None:
    account = await opener(aws)

    async def broke() -> None:
        raise Exhausted("BUDGET_EXHAUSTED", "no")

    aws.refuse("DescribeStoreImageTasks", "InternalError", status=500, times=10)
    read = account.read_page(TARGET, pay=broke, throttled=lambda: None)
    error = await refused(read(Query(), None))
    assert (error.reason, error.aws_code) == ("AWS_INTERNAL_ERROR", "InternalError")
    assert len(aws.asked("DescribeStoreImageTasks")) == 1


async def test_an_attempt_that_may_not_be_paid_is_not_made(aws: ScriptedAws, opener: Opener) -> None:
    account = await opener(aws)

    async def closing() -> None:
        raise Unavailable("DRAINING", "no")

    aws.refuse("DescribeStoreImageTasks", "InternalError", status=500, times=10)
    read = account.read_page(TARGET, pay=closing, throttled=lambda: None)
    assert (await refused(read(Query(), None))).reason == "DRAINING"
    assert len(aws.asked("DescribeStoreImageTasks")) == 1


async def test_other_calls_are_not_paid(aws: ScriptedAws, opener: Opener) -> None:
    account, till = await opener(aws), Till()
    aws.refuse("GetCallerIdentity", "Throttling", status=400)
    await account.identity()
    await till.of(account)(Query(), None)
    assert (till.paid, till.throttles) == (0, 0)


# An AuthFailure.


async def test_an_auth_failure_is_the_regions_once_sts_has_accepted_the_credentials(
    aws: ScriptedAws, opener: Opener
) -> None:
    account, till = await opener(aws), Till()
    aws.refuse("DescribeStoreImageTasks", "AuthFailure", status=401, times=3)
    assert (await refused(till.of(account)(Query(), None))).reason == "AWS_CREDENTIALS_REJECTED"
    await account.identity()
    assert (await refused(till.of(account)(Query(), None))).reason == "AWS_REGION_NOT_ENABLED"
    aws.refuse("GetCallerIdentity", "InvalidClientTokenId", status=403)
    assert (await refused(account.identity())).reason == "AWS_CREDENTIALS_REJECTED"
    # No longer proven.
    assert (await refused(till.of(account)(Query(), None))).reason == "AWS_CREDENTIALS_REJECTED"


# Where.


@pytest.mark.parametrize(
    ("keys", "variable", "expected"),
    [
        ({}, None, "us-east-1"),
        ({}, "eu-west-3", "eu-west-3"),
        ({"home_region": "eu-north-1"}, "eu-west-3", "eu-north-1"),
        ({"partition": "aws-us-gov"}, "eu-west-3", "us-gov-west-1"),
        ({"partition": "aws-us-gov"}, "us-gov-east-1", "us-gov-east-1"),
        ({"partition": "aws-cn"}, None, "cn-north-1"),
    ],
)
def test_the_home_region_is_one_of_the_partition(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], variable: str | None, expected: str
) -> None:
    if variable:
        monkeypatch.setenv("AWS_REGION", variable)
    assert opener.now(**keys).home_region == expected


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where clients would have sent requests: nothing leaves this machine."""
    urls: list[str] = []

    async def send(_: Any, request: Any) -> Any:
        urls.append(request.url)
        raise RuntimeError("not sent")

    monkeypatch.setattr(aws_http.HttpSession, "send", send)
    return urls


@pytest.mark.parametrize(
    ("keys", "region", "hosts"),
    [
        ({}, "eu-central-1", ["ec2.eu-central-1.amazonaws.com", "sts.us-east-1.amazonaws.com"]),
        (
            {"use_fips": True},
            "us-east-2",
            ["ec2-fips.us-east-2.amazonaws.com", "sts-fips.us-east-1.amazonaws.com"],
        ),
        (
            {"partition": "aws-us-gov"},
            "us-gov-east-1",
            ["ec2.us-gov-east-1.amazonaws.com", "sts.us-gov-west-1.amazonaws.com"],
        ),
        (
            {"partition": "aws-cn"},
            "cn-northwest-1",
            ["ec2.cn-northwest-1.amazonaws.com.cn", "sts.cn-north-1.amazonaws.com.cn"],
        ),
        ({"endpoint_url": "https://ec2.test"}, "eu-central-1", ["ec2.test", "sts.us-east-1.amazonaws.com"]),
        (
            {"sts_endpoint_url": "https://sts.test"},
            "eu-central-1",
            ["ec2.eu-central-1.amazonaws.com", "sts.test"],
        ),
    ],
)
@pytest.mark.usefixtures("log")
async def test_each_service_is_asked_where_the_configuration_says(
    opener: Opener, sent: list[str], keys: dict[str, Any], region: str, hosts: list[str]
) -> None:
    account = await opener(**keys)
    await refused(account.ask("ec2", region, "describe_store_image_tasks"))
    await refused(account.identity())
    assert [url.split("/")[2] for url in sent] == hosts


async def test_a_proxy_gets_the_requests(aws: ScriptedAws, opener: Opener) -> None:
    account = await opener(proxy=aws.url, endpoint_url="http://ec2.test", sts_endpoint_url="http://sts.test")
    await account.identity()
    await account.enabled_regions()
    assert [each.path for each in aws.requests] == ["http://sts.test/", "http://ec2.test/"]


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:1"])
async def test_certificates_are_checked_against_the_bundle_also_through_a_proxy(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    shutil.copy(aws_http.get_cert_path(True), bundle)
    account = await opener(ca_bundle=bundle, proxy=proxy)
    client = await account._session.client("ec2", "eu-central-1")
    connector = client._endpoint.http_session._create_connector(proxy)
    assert connector._ssl is aws_http.tls_context(str(bundle))
    assert connector._ssl.verify_mode.name == "CERT_REQUIRED"
    await connector.close()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    ambient = await (await opener())._session.client("ec2", "eu-central-1")
    assert ambient._endpoint.http_session._verify == str(bundle)


# Clients.


async def test_clients_share_their_tls_context_and_the_slim_model(opener: Opener) -> None:
    first, second = await opener(), await opener(role_arn=ROLE)
    clients = [
        await account._session.client("ec2", region)
        for account in (first, second)
        for region in ("eu-central-1", "us-east-1")
    ]
    assert all(type(each._endpoint.http_session) is aws_http.AmbientHttpSession for each in clients)
    for each in clients:
        assert set(each.meta.service_model.operation_names) == set(OPERATIONS["ec2"])
    assert len({id(await first._session.client("ec2", "eu-central-1")) for _ in range(2)}) == 1


async def test_who_asks_for_the_same_client_shares_its_building(opener: Opener) -> None:
    session = (await opener())._session
    clients = await asyncio.gather(*(session.client("ec2", "eu-central-1") for _ in range(5)))
    assert len(set(map(id, clients))) == 1
