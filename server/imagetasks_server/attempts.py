"""Every attempt of a call to EC2 is paid, those that botocore makes by itself too, and every throttle told.

`one_call` marks a call; botocore's hooks below find it by a context variable, for they run in its task.
The first attempt of a call was paid before it.
"""

import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from imagetasks_server.aws_errors import is_throttle


@dataclass(slots=True)
class _Call:
    pay: Callable[[], Awaitable[None]]
    throttled: Callable[[], None]
    attempts: int = 0


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("call", default=None)


@contextlib.contextmanager
def one_call(pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]) -> Iterator[None]:
    """What botocore sends within are attempts of one call, whose first was paid.

    Args:
        pay: Waits until one more attempt is paid.
        throttled: Is told each time that EC2 throttles.
    """
    mark = _CALL.set(_Call(pay, throttled))
    try:
        yield
    finally:
        _CALL.reset(mark)


def is_one_call() -> bool:
    """Whether what botocore does now is part of a marked call."""
    return _CALL.get() is not None


async def _before_send(**_: Any) -> None:
    call = _CALL.get()
    if call is not None:
        call.attempts += 1
        if call.attempts > 1:
            await call.pay()


async def _response_received(parsed_response: dict[str, Any] | None, **_: Any) -> None:
    call = _CALL.get()
    if call is not None and is_throttle((parsed_response or {}).get("Error", {}).get("Code", "")):
        call.throttled()


HOOKS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "before-send.ec2.DescribeStoreImageTasks": _before_send,
    "response-received.ec2.DescribeStoreImageTasks": _response_received,
}
