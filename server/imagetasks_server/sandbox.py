"""The sandbox as a child process: an EC2 to try the gateway on, which ends with it."""

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.config import ConfigError, Settings

_READY_SECONDS: Final = 30.0
_NOT_INSTALLED: Final = "--sandbox needs what is not installed: pip install 'imagetasks[sandbox]'"
_STOP_SECONDS: Final = 5.0

# Whatever leads botocore to other credentials or another address, or bends how it asks.
_FOREIGN_PREFIXES: Final = ("AWS_", "BOTO_")
_FOREIGN_SUFFIXES: Final = ("_PROXY",)

Adapt: TypeAlias = Callable[[Settings], Settings]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A running sandbox.

    Attributes:
        endpoint: Its address.
        environment: What makes an AWS program use it.
        accounts: The accounts it has.
        ended: Resolves if it ends by itself.
    """

    endpoint: str
    environment: Mapping[str, str]
    accounts: tuple[AccountSettings, ...]
    ended: asyncio.Task[int]

    def adopt(self) -> None:
        """Make this process use it, and no other credentials."""
        for name in list(os.environ):
            if name.upper().startswith(_FOREIGN_PREFIXES) or name.upper().endswith(_FOREIGN_SUFFIXES):
                del os.environ[name]
        os.environ.update(self.environment)


@contextlib.asynccontextmanager
async def sandbox(arguments: Sequence[str] = ()) -> AsyncIterator[Sandbox]:
    """Start the sandbox, seeded, on a free port; stop it in the end.

    It holds our pipe as its standard input and ends with that, so it goes even if we are killed.

    Raises:
        ConfigError: It does not start; the extra may be missing.
    """
    if importlib.util.find_spec("moto") is None:
        raise ConfigError(_NOT_INSTALLED)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imagetasks_sandbox", "--port", "0", "--seed"),
        *("--ready-json", "--exit-with-stdin", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Of its own group: Ctrl-C on a terminal is for the gateway, which ends it in order.
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    ended = asyncio.create_task(child.wait())
    try:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                line = await child.stdout.readline()
            ready = json.loads(line)
        except (TimeoutError, ValueError):
            raise ConfigError("the sandbox does not start; what it says stands above") from None
        accounts = tuple(
            AccountSettings(name=each["name"], role_arn=each.get("role_arn")) for each in ready["accounts"]
        )
        yield Sandbox(ready["endpoint"], ready["environment"], accounts, ended)
    finally:
        child.stdin.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()
        await ended


async def use_sandbox(
    arguments: Sequence[str], stack: contextlib.AsyncExitStack
) -> tuple[Adapt, asyncio.Task[int]]:
    """What puts the sandbox's accounts into settings, and what resolves if it ends by itself."""
    child = await stack.enter_async_context(sandbox(arguments))
    child.adopt()

    def use(settings: Settings) -> Settings:
        reflection = True if settings.reflection is None else settings.reflection
        instead = {"accounts": child.accounts, "organizations": (), "reflection": reflection}
        return settings.model_copy(update=instead)

    return use, child.ended
