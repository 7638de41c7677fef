"""How accounts' sessions come about: credentials, roles, and what all of them share.

Botocore is handed slim models (`aws_models`) and a parser of ours (`aws_parser`); clients share TLS contexts
(`aws_http`), and accounts what their roles are assumed with.
"""

import functools
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import aiobotocore.credentials

from imagetasks_server.account_settings import Access
from imagetasks_server.aws_credentials import Credentials
from imagetasks_server.aws_http import HttpConfig
from imagetasks_server.aws_models import loader, slim_session
from imagetasks_server.aws_parser import ParserFactory
from imagetasks_server.aws_session import AwsSession
from imagetasks_server.aws_user_agent import UserAgent

ROLE_SESSION_NAME: Final = "imagetasks"

Hooks: TypeAlias = Mapping[str, Callable[..., Awaitable[None] | None]]


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
        self._builders = builders
        self._parsers = ParserFactory()
        self._hooks = hooks
        self._options = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            # Not "adaptive": it guesses at a rate that the budget knows.
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "parameter_validation": False,
            # All that this would change is said here.
            "defaults_mode": "legacy",
        }
        logging.getLogger("aiobotocore.credentials").addFilter(_is_news)
        # Accounts are opened on threads.
        self._lock = threading.Lock()
        self._sources: dict[Access, _Source] = {}

    def open(self, access: Access, role_arn: str | None, actions: Sequence[str]) -> "AwsSession":
        """A session, which asks nothing yet. Reads configuration files, so it may block.

        Args:
            access: How AWS is reached.
            role_arn: The role to assume; None: none.
            actions: IAM's actions that the assumed role is narrowed to.

        Raises:
            Exception: What botocore raises where the configuration files are wrong, or lack the profile.
        """
        with self._lock:
            source = self._source(access)
        if role_arn is None:
            return AwsSession(access, self._core(access), source.credentials, self._builders)
        arguments = {"RoleArn": role_arn, **_role_arguments(access, actions)}
        credentials = Credentials(functools.partial(source.role, arguments), source.credentials)
        session = AwsSession(access, self._core(access), credentials, self._builders, source.release)
        with self._lock:
            source.users += 1
        return session

    def _core(self, access: Access) -> Any:
        """Botocore's session, set up as all of ours are."""
        core = slim_session()
        core.register_component("data_loader", loader())
        core.register_component("response_parser_factory", self._parsers)
        core.register_component("user_agent_creator", UserAgent.from_environment())
        options = dict(self._options)
        if access.proxy:
            options["proxies"] = {"http": access.proxy, "https": access.proxy}
        if access.use_fips:
            options["use_fips_endpoint"] = True
        # The session's, not each client's: botocore makes clients of its own to come by credentials.
        core.set_default_client_config(HttpConfig(**options))
        for variable, value in (("profile", access.profile), ("ca_bundle", access.ca_bundle)):
            if value is not None:
                core.set_config_variable(variable, str(value))
        for event, hook in self._hooks.items():
            core.register(event, hook)
        # Botocore finds a missing profile only here.
        core.get_scoped_config()
        return core

    def _source(self, access: Access) -> "_Source":
        """What roles are assumed with: one for all accounts that come by it in the same way."""
        shared = ("profile", "partition", "home_region", "sts_endpoint_url", "use_fips", "ca_bundle", "proxy")
        way = Access(**{key: getattr(access, key) for key in shared})
        if way not in self._sources:
            core = self._core(way)
            credentials = Credentials(functools.partial(_search, core))
            session = AwsSession(way, self._core(way), credentials, self._builders)
            self._sources[way] = _Source(credentials, session)
        return self._sources[way]


class _Source:
    """Credentials as they are found, and a client that assumes roles with them, while anybody uses it."""

    def __init__(self, credentials: Credentials, session: AwsSession) -> None:
        self.credentials = credentials
        self.users = 0
        self._session = session

    async def role(self, arguments: Mapping[str, str]) -> Any:
        """The role's credentials, which are assumed when first used, and again before they end."""

        async def assume() -> dict[str, str]:
            sts = await self._session.client("sts", self._session.home_region)
            given = (await sts.assume_role(**arguments))["Credentials"]
            return {
                "access_key": given["AccessKeyId"],
                "secret_key": given["SecretAccessKey"],
                "token": given["SessionToken"],
                "expiry_time": given["Expiration"].isoformat(),
            }

        return aiobotocore.credentials.AioDeferredRefreshableCredentials(
            method="assume-role", refresh_using=assume
        )

    async def release(self) -> None:
        """One user less. It may be used again later."""
        self.users -= 1
        if self.users == 0:
            await self._session.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Not a refresh that had to succeed: that one is raised too, and told in our own words."""
    return "mandatory" not in record.getMessage()


async def _search(core: Any) -> Any:
    """Botocore's chain of places where credentials may be, from the first."""
    return await aiobotocore.credentials.create_credential_resolver(core).load_credentials()


def _role_arguments(access: Access, actions: Sequence[str]) -> dict[str, str]:
    """Of AssumeRole. The policy narrows the session: whatever the role may do, this can do no more."""
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    arguments = {"RoleSessionName": ROLE_SESSION_NAME, "Policy": json.dumps(policy, separators=(",", ":"))}
    if access.external_id is not None:
        arguments["ExternalId"] = access.external_id
    return arguments
