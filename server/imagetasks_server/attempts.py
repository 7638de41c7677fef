"""Every attempt of a call to EC2 is paid, those that botocore makes by itself too, and every throttle told.

`one_call` marks a call; botocore's hooks below find it by a context variable, for they run in its task.
The first attempt of a call was paid before it. None follows a throttle, which has emptied the budget, and
none that could not be paid soon: then what failed is the answer, and whoever has an older state can show it.
"""

import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from imagetasks_server.aws_errors import is_throttle, raised_for
from imagetasks_server.errors import Exhausted


@dataclass(slots=True)
class _Call:
    pay: Callable[[], Awaitable[None]]
    throttled: Callable[[], None]
    attempts: int = 0
    failure: Exception | None = None


class _NoMore(Exception):
    """Ends a call's attempts. Not one of botocore's, which it would meet with another attempt."""


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("call", default=None)


@contextlib.contextmanager
def one_call(pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]) -> Iterator[None]:
    """What botocore sends within are attempts of one call, whose first was paid.

    Args:
        pay: Waits until one more attempt is paid. Raises `Exhausted` if that would take too long.
        throttled: Is told each time that EC2 throttles.
    """
    call = _Call(pay, throttled)
    mark = _CALL.set(call)
    try:
        yield
    except _NoMore:
        assert call.failure is not None
        raise call.failure from None
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
            try:
                await call.pay()
            except Exhausted:
                raise _NoMore from None


async def _needs_retry(
    response: tuple[Any, dict[str, Any]] | None, caught_exception: Exception | None, operation: Any, **_: Any
) -> None:
    call = _CALL.get()
    if call is None or isinstance(caught_exception, _NoMore):
        return
    call.failure = caught_exception
    if response is not None and "Error" in response[1]:
        call.failure = raised_for(response[1], operation.name)
        if is_throttle(response[1]["Error"].get("Code", "")):
            call.throttled()
            raise _NoMore


HOOKS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "before-send.ec2.DescribeStoreImageTasks": _before_send,
    "needs-retry.ec2.DescribeStoreImageTasks": _needs_retry,
}
