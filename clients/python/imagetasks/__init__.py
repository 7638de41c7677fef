"""Client of the imagetasks gateway: the store tasks of AMIs over all accounts and Regions.

    async with imagetasks.connect("127.0.0.1:50051") as client:
        async for task in client.describe(filters={"task-state": ["InProgress"]}):
            print(task.region, task.ami_id, task.progress_percentage)

`connect_blocking` gives the same client without asyncio. What they return are the contract's own messages
(`imagetasks.v1.store_image_tasks_pb2`); what they raise is `Error` and its subclasses.

Names are imported when first used, so that the generated stubs below this package and the command line's
quick answers do not pay for the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagetasks.aio import Client, connect
    from imagetasks.blocking import Client as BlockingClient
    from imagetasks.blocking import connect as connect_blocking
    from imagetasks.errors import (
        AbortedError,
        DeadlineExceededError,
        Error,
        FailedPreconditionError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        OutOfRangeError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from imagetasks.watch import BlockingWatch, Watch
    from imagetasks.watching import Change, Stale

    __version__: str

__all__ = [
    "AbortedError",
    "BlockingClient",
    "BlockingWatch",
    "Change",
    "Client",
    "DeadlineExceededError",
    "Error",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Stale",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Watch",
    "__version__",
    "connect",
    "connect_blocking",
]

_ELSEWHERE = {
    "BlockingClient": ("imagetasks.blocking", "Client"),
    "BlockingWatch": ("imagetasks.watch", "BlockingWatch"),
    "Change": ("imagetasks.watching", "Change"),
    "Client": ("imagetasks.aio", "Client"),
    "Stale": ("imagetasks.watching", "Stale"),
    "Watch": ("imagetasks.watch", "Watch"),
    "connect": ("imagetasks.aio", "connect"),
    "connect_blocking": ("imagetasks.blocking", "connect"),
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used (PEP 562)."""
    value: object
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        value = import_module("importlib.metadata").version("imagetasks")
    else:
        module, attribute = _ELSEWHERE.get(name, ("imagetasks.errors", name))
        value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
