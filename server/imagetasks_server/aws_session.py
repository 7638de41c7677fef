"""Sessions and clients that are cheap enough to have one client for each target.

One session for each account; botocore is handed slim models (`aws_models`), clients share TLS contexts
(`aws_tls`) and, where accounts have them in common, credentials; they are built on a thread.
"""

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import aioboto3
import aiobotocore.credentials
import aiobotocore.session

from imagetasks_server.account_settings import HOME_REGIONS, Access, partition_of
from imagetasks_server.aws_credentials import Credentials
from imagetasks_server.aws_models import SlimLoader
from imagetasks_server.aws_parser import ParserFactory
from imagetasks_server.aws_tls import SharedTlsConfig, tls_context

ROLE_SESSION_NAME: Final = "imagetasks"

Hooks: TypeAlias = Mapping[str, Callable[..., Awaitable[None]]]


class AwsSessions:
    """Makes sessions; holds what they share.

    Args:
        builders: Where clients are built, one at a time: botocore's sessions are not thread-safe.
        connect_timeout: Seconds.
        read_timeout: Seconds.
        attempts: Times that a call is tried.
        hooks: Botocore's events and who hears them, in every client.
    """

    def __init__(
        self,
        builders: ThreadPoolExecutor,
        *,
        connect_timeout: float,
        read_timeout: float,
        attempts: int,
        hooks: Hooks,
    ) -> None:
        self.builders = builders
        self._loader = SlimLoader()
        self._parsers = ParserFactory()
        self._hooks = hooks
        self._options = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            # Not "adaptive": it guesses at a rate that the budget knows.
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "parameter_validation": False,
        }
        self._sources: dict[Access, Credentials] = {}

    def open(self, access: Access, role_arn: str | None, actions: Sequence[str]) -> "AwsSession":
        """A session, which asks nothing yet. Reads configuration files, so it may block.

        Args:
            access: How AWS is reached.
            role_arn: The role to assume; None: none.
            actions: IAM's actions that the assumed role is narrowed to.

        Raises:
            Exception: What botocore raises where the configuration files are wrong, or lack the profile.
        """
        core = self.core(access)
        home_region = _home_region(access, core)
        source = self._source(access)
        credentials = source
        if role_arn is not None:
            arguments = _role_arguments(access, actions)
            sts = functools.partial(
                core.create_client, region_name=home_region, endpoint_url=access.sts_endpoint_url
            )
            credentials = Credentials(_assume(sts, source, role_arn, arguments))
        core.register_component("credential_provider", _Provider(credentials))
        return AwsSession(access, core, self.builders, (credentials, source), home_region)

    def core(self, access: Access) -> Any:
        """Botocore's session, set up as all of ours are."""
        core = aiobotocore.session.get_session()
        core.register_component("data_loader", self._loader)
        core.register_component("response_parser_factory", self._parsers)
        options = dict(self._options)
        if access.proxy:
            options["proxies"] = {"http": access.proxy, "https": access.proxy}
        if access.use_fips:
            options["use_fips_endpoint"] = True
        # The session's, not each client's: botocore makes clients of its own to come by credentials.
        core.set_default_client_config(SharedTlsConfig(**options))
        for variable, value in (("profile", access.profile), ("ca_bundle", access.ca_bundle)):
            if value is not None:
                core.set_config_variable(variable, str(value))
        for event, hook in self._hooks.items():
            core.register(event, hook)
        # Botocore finds a missing profile only here.
        core.get_scoped_config()
        return core

    def _source(self, access: Access) -> Credentials:
        """What roles are assumed with: one for all accounts that come by it in the same way."""
        way = Access(
            profile=access.profile,
            partition=access.partition,
            use_fips=access.use_fips,
            ca_bundle=access.ca_bundle,
            proxy=access.proxy,
        )
        if way not in self._sources:
            self._sources[way] = Credentials(functools.partial(_search, self.core(way)))
        return self._sources[way]


class AwsSession:
    """One account's clients, each built when first asked for. `AwsSessions` makes it."""

    def __init__(
        self,
        access: Access,
        core: Any,
        builders: ThreadPoolExecutor,
        credentials: tuple[Credentials, Credentials],
        home_region: str,
    ) -> None:
        self.home_region = home_region
        self._session = aioboto3.Session(botocore_session=core)
        self._verify = core.get_config_variable("ca_bundle") or True
        self._endpoints = {"ec2": access.endpoint_url, "sts": access.sts_endpoint_url}
        self._builders = builders
        self._credentials, self._source = credentials
        self._clients: dict[tuple[str, str], Any] = {}
        self._building: dict[tuple[str, str], asyncio.Future[Any]] = {}

    async def client(self, service: str, region: str) -> Any:
        """The client of a service in a Region.

        Raises:
            Exception: What botocore raises.
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

    def generations(self) -> tuple[int, int]:
        """Which credentials are in use, to be told later that they had expired."""
        return self._credentials.generation, self._source.generation

    def forget(self, generations: tuple[int, int]) -> None:
        """Find the credentials anew, and those that the role is assumed with: these had expired."""
        own, source = generations
        self._credentials.forget(own)
        # Without a role they are the same, and have just been forgotten.
        if self._source is not self._credentials:
            self._source.forget(source)

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
        loop = asyncio.get_running_loop()
        client = await loop.run_in_executor(self._builders, self._build_here, key)
        self._clients[key] = client
        return client

    def _build_here(self, key: tuple[str, str]) -> Any:
        service, region = key

        async def build() -> Any:
            # Nothing here touches a socket: the client opens its first with its first call.
            context = self._session.client(
                service, region_name=region, endpoint_url=self._endpoints.get(service)
            )
            return await context.__aenter__()

        # The first call would load it, and block the loop meanwhile.
        tls_context(self._verify)
        return asyncio.run(build())


class _Provider:
    """Hands botocore our credentials, where it would look for its own."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> Credentials:
        return self._credentials


async def _search(core: Any) -> Any:
    """Botocore's chain of places where credentials may be, from the first."""
    return await aiobotocore.credentials.create_credential_resolver(core).load_credentials()


def _assume(
    sts: Callable[..., Any], source: Credentials, role_arn: str, arguments: Mapping[str, str]
) -> Callable[[], Awaitable[Any]]:
    """Assumes the role anew each time it is called; what it returns refreshes itself."""

    async def assume() -> Any:
        fetcher = aiobotocore.credentials.AioAssumeRoleCredentialFetcher(
            client_creator=sts,
            source_credentials=source,
            role_arn=role_arn,
            extra_args=dict(arguments),
        )
        return aiobotocore.credentials.AioDeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )

    return assume


def _role_arguments(access: Access, actions: Sequence[str]) -> dict[str, str]:
    """Of AssumeRole. The policy narrows the session: whatever the role may do, this can do no more."""
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    arguments = {"RoleSessionName": ROLE_SESSION_NAME, "Policy": json.dumps(policy, separators=(",", ":"))}
    if access.external_id is not None:
        arguments["ExternalId"] = access.external_id
    return arguments


def _home_region(access: Access, core: Any) -> str:
    if access.home_region is not None:
        return access.home_region
    # Botocore reads AWS_DEFAULT_REGION only; everybody else reads AWS_REGION.
    for region in (os.environ.get("AWS_REGION"), core.get_config_variable("region")):
        if region and partition_of(region) == access.partition:
            return str(region)
    return HOME_REGIONS[access.partition]
