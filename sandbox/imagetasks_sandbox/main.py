"""The command line: reads the arguments, forgets the user's AWS settings, and runs the sandbox."""

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from imagetasks_sandbox.throttle import Rate
from imagetasks_sandbox.world import ACCOUNTS, DENIED, ENABLED, NOT_OPTED_IN, client_environment

_DESCRIPTION = """\
An EC2 on this machine to try store image tasks on: moto's server with CreateStoreImageTask,
DescribeStoreImageTasks and CreateRestoreImageTask on its own AMIs and S3 buckets. Listens on
loopback only, and uses no credentials of yours.
"""

_EPILOG = f"""\
accounts: {ACCOUNTS[0].account_id} by the access key that is printed at the start, and by AssumeRole
  {ACCOUNTS[1].role_arn}
  {ACCOUNTS[2].role_arn}
Regions: {len(ENABLED)} are enabled; in {DENIED} a policy denies the actions; {NOT_OPTED_IN} is not opted in.
To see a task fail: while it is in progress delete its bucket, or deny s3:PutObject in the
bucket's policy.
"""

_NOT_INSTALLED = "imagetasks-sandbox: it needs what is not installed: pip install 'imagetasks[sandbox]'\n"
_MAX_PORT = 65535
_MAX_PAGE = 200  # EC2's


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox; returns the exit code: 0, 2 if its extra is not installed, 130 after an interrupt."""
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("moto") is None:
        sys.stderr.write(_NOT_INSTALLED)
        return 2
    ending = threading.Event()
    received: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        received.append(number)
        ending.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if options.exit_with_stdin:
        threading.Thread(target=_wait_for_end_of_stdin, args=(ending,), name="stdin", daemon=True).start()

    _forget_real_settings()
    # moto and boto read the environment when they are imported: not before this line.
    from imagetasks_sandbox import running  # noqa: PLC0415

    running.run(
        running.Options(
            host=options.host,
            port=options.port,
            speed=options.speed,
            page_size=options.page_size,
            throttle=options.throttle,
            random_seed=options.random_seed if options.seed else None,
            ready_json=options.ready_json,
        ),
        ending,
    )
    return 130 if signal.SIGINT in received else 0


def _forget_real_settings() -> None:
    """Leave nothing in the environment by which boto could find credentials, nor anything that bends moto."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO_", "MOTO_"))]:
        del os.environ[name]
    os.environ |= client_environment("http://127.0.0.1:9")  # the discard port, should boto ever be used
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # 1,301 AMIs in every account and Region
    os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"  # no web page has business here


def _wait_for_end_of_stdin(ending: threading.Event) -> None:
    # Bare reads: a thread blocked in a buffered one holds a lock that the interpreter needs to exit.
    with contextlib.suppress(OSError):  # a stdin that was closed from the start has ended too
        while os.read(0, 4096):
            pass
    ending.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagetasks-sandbox",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", type=_loopback, default="127.0.0.1", help="loopback address to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=5001, help="port to listen on; 0: any free one (%(default)s)"
    )
    parser.add_argument(
        "--seed",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="begin with AMIs, buckets and tasks in all accounts and Regions, and keep starting tasks",
    )
    parser.add_argument(
        "--random-seed", metavar="N", type=int, default=1, help="each N is another seeded world (%(default)s)"
    )
    parser.add_argument(
        "--speed",
        metavar="FACTOR",
        type=_positive,
        default=1.0,
        help="how much faster tasks go; at 1 a store takes about two minutes (%(default)s)",
    )
    parser.add_argument(
        "--page-size",
        metavar="N",
        type=_page_size,
        default=_MAX_PAGE,
        help="tasks of a page where MaxResults is not given, 1 to 200 (%(default)s)",
    )
    parser.add_argument(
        "--throttle",
        metavar="CAPACITY:REFILL",
        type=_rate,
        default=Rate(),
        help="tokens of DescribeStoreImageTasks per account and Region: at most, per second (50:0.5)",
    )
    parser.add_argument(
        "--no-throttle", dest="throttle", action="store_const", const=None, help="never throttle"
    )
    parser.add_argument(
        "--ready-json",
        action="store_true",
        help="print one line of JSON when ready: endpoint, environment, accounts, regions, ...",
    )
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="end when stdin ends, so also when the parent dies"
    )
    return parser


def _refuse(reason: str) -> NoReturn:
    raise argparse.ArgumentTypeError(reason)


def _loopback(host: str) -> str:
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        _refuse(f"{host!r} is no address")
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        _refuse(f"{host!r} is not a loopback address, and a sandbox is not to be reached from elsewhere")
    return host


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= _MAX_PORT):
        _refuse(f"{text!r} is no port (0 to {_MAX_PORT})")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        _refuse(f"{text!r} is not a number above 0")
    return number


def _page_size(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MAX_PAGE):
        _refuse(f"{text!r} is not a number from 1 to {_MAX_PAGE}")
    return int(text)


def _rate(text: str) -> Rate:
    capacity, colon, refill = text.partition(":")
    try:
        rate = Rate(float(capacity), float(refill))
    except ValueError:
        rate = Rate(0, 0)
    if not colon or not 1 <= rate.capacity < float("inf") or not 0 <= rate.refill < float("inf"):
        _refuse(f"{text!r} is not CAPACITY:REFILL with a capacity of at least 1, as 50:0.5")
    return rate
