"""Clients of AWS: cheap to have, and yet what they send is what botocore's own would send."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aioboto3
import pytest
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import UnknownServiceError
from botocore.loaders import Loader
from botocore.useragent import UserAgentString
from scripted_aws import ACCOUNT, ScriptedAws, scripted_aws

from canned import wire
from imagetasks_server import aws_http
from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.aws_models import OPERATIONS, SlimLoader
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws, AwsAccount
from imagetasks_server.errors import Error
from imagetasks_server.targets import Target
from imagetasks_server.upstream import Query

ROLE = f"arn:aws:iam::{ACCOUNT}:role/imagetasks"
Open = Callable[..., AwsAccount]


@pytest.fixture(autouse=True)
def _ambient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAAMBIENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
async def open_account() -> AsyncIterator[Open]:
    opened: list[AwsAccount] = []
    with ThreadPoolExecutor(1) as builders:
        aws = Aws(Settings(attempts=1), builders)

        def open_account(**keys: Any) -> AwsAccount:
            opened.append(aws.open(AccountSettings(name="a", **keys)))
            return opened[-1]

        yield open_account
        for each in opened:
            await each.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that clients would have sent: nothing leaves this machine."""
    requests: list[Any] = []

    async def send(_: Any, request: Any) -> Any:
        requests.append(request)
        raise RuntimeError("not sent")

    monkeypatch.setattr(AIOHTTPSession, "send", send)
    return requests


async def ask(account: AwsAccount, region: str) -> None:
    with pytest.raises(Error):
        await account.ask("ec2", region, "describe_store_image_tasks", MaxResults=200)


async def ask_as_botocore(region: str, **keys: Any) -> None:
    client = aioboto3.Session().client("ec2", region_name=region, **keys)
    async with client as stock:
        with pytest.raises(RuntimeError):
            await stock.describe_store_image_tasks(MaxResults=200)


def told(request: Any) -> tuple[Any, ...]:
    """What a request tells AWS, but for its moment and who made it."""
    authorization = re.sub(r"/\d{8}/|Signature=.*", "", request.headers["Authorization"].decode())
    return request.method, request.url, request.body, authorization, sorted(request.headers)


@pytest.mark.parametrize("dual_stack", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        ({}, ("us-east-1", "eu-central-1", "ap-southeast-4", "mx-central-1", "eu-nowhere-9")),
        ({"use_fips": True}, ("us-east-1", "us-west-2", "ca-central-1", "eu-central-1")),
        ({"partition": "aws-us-gov"}, ("us-gov-west-1", "us-gov-east-1")),
        ({"partition": "aws-us-gov", "use_fips": True}, ("us-gov-west-1", "us-gov-east-1")),
        ({"partition": "aws-cn"}, ("cn-north-1", "cn-northwest-1")),
        ({"endpoint_url": "https://ec2.test:8443/path"}, ("eu-central-1", "us-west-1")),
    ],
)
@pytest.mark.usefixtures("log")
async def test_each_region_is_asked_as_by_a_client_of_its_own(
    open_account: Open,
    sent: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[dict[str, Any], tuple[str, ...]],
    dual_stack: bool,
) -> None:
    keys, regions = asked
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", str(dual_stack).lower())
    account = await asyncio.to_thread(open_account, **keys)
    for region in regions:
        await ask(account, region)
    ours = [told(each) for each in sent]
    sent.clear()
    if keys.get("use_fips"):
        monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    for region in regions:
        await ask_as_botocore(region, endpoint_url=keys.get("endpoint_url"))
    assert ours == [told(each) for each in sent]


async def test_the_region_of_a_call_is_not_that_of_the_call_for_its_credentials(open_account: Open) -> None:
    async with scripted_aws() as aws:
        account = await asyncio.to_thread(
            open_account, role_arn=ROLE, endpoint_url=aws.url, sts_endpoint_url=aws.url
        )
        await account.ask("ec2", "eu-central-1", "describe_store_image_tasks")
        assert [(each.action, each.region) for each in aws.requests] == [
            ("AssumeRole", "us-east-1"),
            ("DescribeStoreImageTasks", "eu-central-1"),
        ]


class _Together(ScriptedAws):
    """Answers when so many are asked at once."""

    async def answer(self, request: Any) -> Any:
        await self.barrier.wait()
        return await super().answer(request)

    barrier: asyncio.Barrier


async def test_all_regions_are_asked_at_once(open_account: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = [f"eu-many-{number}" for number in range(34)]
    monkeypatch.setattr("scripted_aws.ScriptedAws", _Together)
    async with scripted_aws() as aws, asyncio.timeout(10):
        monkeypatch.setattr(aws, "barrier", asyncio.Barrier(len(regions)), raising=False)
        account = await asyncio.to_thread(open_account, endpoint_url=aws.url)

        async def pay() -> None:
            pass

        seams = [
            account.read_page(Target("a", region, ACCOUNT, "aws"), pay=pay, throttled=lambda: None)
            for region in regions
        ]
        pages = await asyncio.gather(*(seam(Query(), None) for seam in seams))
        assert all(page.next_token is None for page in pages)
        assert sorted(each.region for each in aws.requests) == sorted(regions)


async def test_a_host_that_no_proxy_names_is_asked_directly(
    open_account: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_aws() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "eu-central-1.test,127.0.0.1")
        account = await asyncio.to_thread(open_account, endpoint_url="http://ec2.test")
        await account.ask("ec2", "eu-central-1", "describe_regions")
        assert [each.path for each in proxy.requests] == ["http://ec2.test/"]
        client = await account._session.client("ec2", "us-east-1")
        way = client._endpoint.http_session._proxy_config.proxy_url_for
        # The client was built for the first of these.
        assert way("http://ec2.test/") == way("http://ec2.eu-west-1.test/") == proxy.url
        assert way("http://ec2.eu-central-1.test/") is None


async def test_the_user_agent_is_botocores_and_put_together_once(
    open_account: Open, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await asyncio.to_thread(open_account)
    made = []
    put_together = UserAgentString.to_string

    def to_string(agent: UserAgentString) -> str:
        made.append(put_together(agent))
        return str(made[-1])

    monkeypatch.setattr(UserAgentString, "to_string", to_string)
    # What is found out only once, as credentials are, is told by the first call alone.
    for _ in range(2):
        await ask(account, "eu-central-1")
    assert {each.headers["User-Agent"].decode() for each in sent} <= set(made)
    assert "cfg/retry-mode#standard" in made[-1]
    made.clear()
    for region in ("eu-central-1", "us-east-1"):
        await ask(account, region)
    assert made == []
    assert len({each.headers["User-Agent"] for each in sent[1:]}) == 1


@pytest.mark.parametrize("service", OPERATIONS)
def test_what_is_kept_of_botocores_data_is_as_it_was(service: str) -> None:
    whole, slim = Loader(), SlimLoader()
    model, kept = (each.load_service_model(service, "service-2") for each in (whole, slim))
    assert kept["metadata"] == model["metadata"]
    assert set(kept["operations"]) == set(OPERATIONS[service])
    assert all(kept["operations"][name] == model["operations"][name] for name in kept["operations"])
    assert all(shape == model["shapes"][name] for name, shape in kept["shapes"].items())
    rules = "endpoint-rule-set-1"
    assert slim.load_service_model(service, rules) == whole.load_service_model(service, rules)


def test_what_else_botocore_needs_for_credentials_is_there_as_a_whole() -> None:
    whole, slim = Loader(), SlimLoader()
    for service in ("sso", "sso-oidc"):
        assert slim.load_service_model(service, "service-2") == whole.load_service_model(service, "service-2")
    assert slim.load_data("endpoints") == whole.load_data("endpoints")
    assert set(whole.list_available_services("service-2")) <= set(slim.list_available_services("service-2"))
    with pytest.raises(UnknownServiceError):
        slim.load_service_model("nothing", "service-2")


class _Listener:
    """Counts who connects, and answers whoever asks that there are no tasks."""

    def __init__(self) -> None:
        self.connected: asyncio.Queue[None] = asyncio.Queue()
        self.asked = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.put_nowait(None)
        body = wire.tasks([], None).encode()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                assert length is not None
                await reader.readexactly(int(length[1]))
                self.asked += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()
        await writer.wait_closed()


async def test_the_first_call_finds_a_connection(open_account: Open) -> None:
    listener = _Listener()
    async with await asyncio.start_server(listener.answer, "127.0.0.1", 0) as server, asyncio.timeout(10):
        port = server.sockets[0].getsockname()[1]
        account = await asyncio.to_thread(open_account, endpoint_url=f"http://127.0.0.1:{port}")
        await account.warm("eu-central-1")
        await listener.connected.get()
        assert listener.asked == 0
        await asyncio.gather(*account._connecting)
        await account.ask("ec2", "eu-central-1", "describe_store_image_tasks")
        assert listener.asked == 1
        assert listener.connected.empty()
        await account.close()


async def test_who_warms_up_does_not_wait_for_aws_and_hears_of_no_fault(
    open_account: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await asyncio.to_thread(open_account, endpoint_url="http://127.0.0.1:1")
    await account.warm("eu-central-1")
    await asyncio.gather(*account._connecting)
    monkeypatch.setattr(aws_http.HttpSession, "connect", lambda *_: asyncio.Event().wait())
    await account.warm("eu-central-1")
    (connecting,) = account._connecting
    await account.close()
    assert connecting.cancelled()
