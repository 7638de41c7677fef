"""Sessions and clients that are cheap enough to have one client for each target.

As they come, a client builds a class with a method for each of EC2's 700 operations and loads the CA
bundle into a TLS context of its own. Here botocore is handed the same model with only the operations
that are used, clients share one TLS context, timestamps are parsed by the standard library, and
clients are built on a thread.
"""

import asyncio
import contextlib
import functools
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

import aioboto3
import aiobotocore.credentials
import aiobotocore.session
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.loaders import Loader
from botocore.utils import parse_timestamp

from imagetasks_server.config import AccountSettings

OPERATIONS: Final = {
    "ec2": ("DescribeStoreImageTasks", "DescribeRegions"),
    "sts": ("GetCallerIdentity", "AssumeRole"),
}
FALLBACK_REGION: Final = "us-east-1"


class SlimLoader(Loader):  # type: ignore[misc]  # botocore is untyped
    """Botocore's loader of service models, without the operations nobody here calls."""

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        """Botocore's model, of `OPERATIONS` only."""
        model = super().load_service_model(service_name, type_name, api_version)
        if type_name != "service-2" or service_name not in OPERATIONS:
            return model
        if service_name not in self._slim:
            self._slim[service_name] = _slim(model, OPERATIONS[service_name])
        return self._slim[service_name]

    def __init__(self) -> None:
        super().__init__()
        self._slim: dict[str, Any] = {}


def _slim(model: dict[str, Any], operations: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: model["operations"][name] for name in operations}
    shapes: dict[str, Any] = {}
    todo = [
        part["shape"]
        for operation in kept.values()
        for part in (operation.get("input"), operation.get("output"), *operation.get("errors", ()))
        if part
    ]
    while todo:
        name = todo.pop()
        if name in shapes:
            continue
        shape = shapes[name] = model["shapes"][name]
        inner = (*shape.get("members", {}).values(), *(shape.get(k) for k in ("member", "key", "value")))
        todo.extend(part["shape"] for part in inner if part)
    return {**model, "operations": kept, "shapes": shapes}


class SharedTlsSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is untyped
    """Aiobotocore's HTTP session, with one TLS context for each CA bundle instead of one for each client."""

    def _create_connector(self, proxy_url: str | None) -> Any:
        if proxy_url or not self._verify or self._cert_file:
            return super()._create_connector(proxy_url)
        return aiohttp.TCPConnector(
            limit=self._max_pool_connections,
            ssl=_tls_context(get_cert_path(self._verify)),
            **self._connector_args,
        )


@functools.cache
def _tls_context(bundle: str) -> ssl.SSLContext:
    context: ssl.SSLContext = create_urllib3_context()
    context.load_verify_locations(bundle)
    return context


def _parse_timestamp(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parse_timestamp(text)  # type: ignore[no-any-return]


class AwsSession:
    """One account's credentials, and its clients.

    Args:
        settings: How to come by the credentials.
        loader: Shared by all accounts.
        builders: Where clients are built, one at a time: botocore's sessions are not thread-safe.
        connect_timeout: Seconds.
        read_timeout: Seconds.
    """

    def __init__(
        self,
        settings: AccountSettings,
        loader: SlimLoader,
        builders: ThreadPoolExecutor,
        *,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self._builders = builders
        self._clients: dict[tuple[str, str], Any] = {}
        self._building: dict[tuple[str, str], asyncio.Future[Any]] = {}
        self._config = AioConfig(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            # The budget pays for calls one by one: an attempt that botocore makes by itself is not paid.
            retries={"mode": "standard", "total_max_attempts": 1},
            http_session_cls=SharedTlsSession,
            parameter_validation=False,
        )
        core = aiobotocore.session.get_session()
        core.register_component("data_loader", loader)
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_timestamp)
        self._session = aioboto3.Session(botocore_session=core, profile_name=settings.profile)
        self._core = core
        self._role_arn = settings.role_arn
        self._credentials_lock = asyncio.Lock()
        self._credentials_loaded = False
        self.home_region = settings.home_region or self._session.region_name or FALLBACK_REGION

    async def client(self, service: str, region: str) -> Any:
        """The client of a service in a Region, built when first asked for.

        Raises:
            Exception: What botocore raises, without credentials for example.
        """
        key = (service, region)
        if key in self._clients:
            return self._clients[key]
        if key not in self._building:
            self._building[key] = asyncio.ensure_future(self._build(key))
        try:
            # One build for all who ask; who leaves does not take it along.
            return await asyncio.shield(self._building[key])
        finally:
            if key in self._building and self._building[key].done():
                del self._building[key]

    async def close(self) -> None:
        """Close all clients and their connections."""
        for task in self._building.values():
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:
            for client in self._clients.values():
                stack.push_async_callback(client.close)
        self._clients.clear()

    async def _build(self, key: tuple[str, str]) -> Any:
        await self._load_credentials()
        loop = asyncio.get_running_loop()
        client = await loop.run_in_executor(self._builders, self._build_here, key)
        self._clients[key] = client
        return client

    def _build_here(self, key: tuple[str, str]) -> Any:
        service, region = key

        async def build() -> Any:
            # Nothing here touches a socket: the client opens its first with its first call.
            context = self._session.client(service, region_name=region, config=self._config)
            return await context.__aenter__()

        return asyncio.run(build())

    async def _load_credentials(self) -> None:
        """Find the credentials on the loop that will refresh them; clients take them from the session."""
        async with self._credentials_lock:
            if self._credentials_loaded:
                return
            source = await self._core.get_credentials()
            if source is None:
                raise NoCredentialsError
            if self._role_arn is not None:
                self._core._credentials = self._assumed(self._role_arn, source)  # noqa: SLF001  # no public way
            self._credentials_loaded = True

    def _assumed(self, role_arn: str, source: Any) -> Any:
        fetcher = aiobotocore.credentials.AioAssumeRoleCredentialFetcher(
            client_creator=functools.partial(
                self._core.create_client, region_name=self.home_region, config=self._config
            ),
            source_credentials=source,
            role_arn=role_arn,
            extra_args={"RoleSessionName": "imagetasks"},
        )
        return aiobotocore.credentials.AioDeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
