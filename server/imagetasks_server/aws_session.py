"""One account's clients at AWS: built when first asked for, on a thread, kept until the account goes."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aioboto3

from imagetasks_server import aws_regions
from imagetasks_server.account_settings import HOME_REGIONS, Access, partition_of
from imagetasks_server.aws_credentials import Credentials
from imagetasks_server.aws_http import tls_context
from imagetasks_server.errors import Unavailable


class AwsSession:
    """One account's clients, each built when first asked for.

    Args:
        access: How AWS is reached.
        core: Botocore's session.
        credentials: What requests are signed with.
        builders: Where clients are built, one at a time: botocore's sessions are not thread-safe.
        closed: Is told when it is closed.

    Attributes:
        home_region: Where STS and DescribeRegions are asked.
    """

    def __init__(
        self,
        access: Access,
        core: Any,
        credentials: Credentials,
        builders: ThreadPoolExecutor,
        closed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.home_region = _home_region(access, core)
        core.register_component("credential_provider", _Provider(credentials))
        self._session = aioboto3.Session(botocore_session=core)
        self._verify = core.get_config_variable("ca_bundle") or True
        self._endpoints = {"ec2": access.endpoint_url, "sts": access.sts_endpoint_url}
        self._builders = builders
        self._credentials = credentials
        self._closed = closed
        self._clients: dict[tuple[str, str], Any] = {}
        self._building: dict[tuple[str, str], asyncio.Future[Any]] = {}

    async def client(self, service: str, region: str) -> Any:
        """The client of a service in a Region; EC2's is the same for all (`aws_regions`).

        Raises:
            Exception: What botocore raises.
        """
        key = (service, self.home_region if service == aws_regions.SERVICE else region)
        if key in self._clients:
            return self._clients[key]
        if key not in self._building:
            self._building[key] = asyncio.ensure_future(self._build(key))
        try:
            # One build for all who ask; who leaves does not take it along.
            building = self._building[key]
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            if not building.cancelled():
                raise
            raise Unavailable("AWS_UNREACHABLE", "the account's configuration has just changed") from None
        finally:
            if key in self._building and self._building[key].done():
                del self._building[key]

    async def connect(self, region: str) -> None:
        """Have a connection to EC2 in a Region ready for the next call, as long as AWS keeps it open.

        Raises:
            Exception: What botocore and aiohttp raise.
        """
        client = await self.client(aws_regions.SERVICE, region)
        with aws_regions.in_region(region):
            # Nobody gets it: it says where the Region is.
            signed = await client.generate_presigned_url("describe_store_image_tasks")
        url, _, _ = signed.partition("?")
        await client._endpoint.http_session.connect(url)  # noqa: SLF001  # nobody is handed it

    def generation(self) -> int:
        """Which credentials are in use, to be told later that they had expired."""
        return self._credentials.generation

    def forget(self, generation: int) -> None:
        """The credentials of then had expired: find them anew."""
        self._credentials.forget(generation)

    async def close(self) -> None:
        """Close all clients and their connections."""
        for task in self._building.values():
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:
            if self._closed is not None:
                stack.push_async_callback(self._closed)
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

        context = self._session.client(service, region_name=region, endpoint_url=self._endpoints.get(service))
        # The first call would load it, and block the loop meanwhile.
        tls_context(self._verify)
        return _at_once(context.__aenter__())


class _Provider:
    """Hands botocore our credentials, where it would look for its own."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> Credentials:
        return self._credentials


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing.

    A client opens its first socket with its first call, and its defaults are not asked of the machine
    (`defaults_mode`), so that it needs no loop to be built.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("botocore waits for something while it builds a client")


def _home_region(access: Access, core: Any) -> str:
    if access.home_region is not None:
        return access.home_region
    # Botocore reads AWS_DEFAULT_REGION only; everybody else reads AWS_REGION.
    for region in (os.environ.get("AWS_REGION"), core.get_config_variable("region")):
        if region and partition_of(region) == access.partition:
            return str(region)
    return HOME_REGIONS[access.partition]
