"""The command line: read the arguments, build every part in order, serve until told to end."""

import argparse
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from imagetasks_sandbox.agenda import Agenda
from imagetasks_sandbox.throttle import Rate, Throttle
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
regions: {len(ENABLED)} are enabled; in {DENIED} a policy denies the actions; {NOT_OPTED_IN} is not opted in.
to see a task fail: while it is in progress delete its bucket, or deny s3:PutObject to everybody in
  the bucket's policy.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox; returns the exit code: 0, or 130 after an interrupt."""
    options = _parser().parse_args(arguments)
    _forget_real_credentials()
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    # moto and boto read the environment when they are imported: not before _forget_real_credentials.
    from imagetasks_sandbox import actions, seed
    from imagetasks_sandbox.service import StoreService
    from imagetasks_sandbox.serving import Server

    ending = threading.Event()
    received: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        received.append(number)
        ending.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if options.exit_with_stdin:
        threading.Thread(target=_wait_for_end_of_stdin, args=(ending,), name="stdin", daemon=True).start()

    agenda = Agenda(lambda: datetime.now(UTC))
    service = StoreService(agenda, speed=options.speed, page_size=options.page_size)
    actions.install(service, Throttle(options.throttle, time.monotonic) if options.throttle else None)
    server = Server(options.host, options.port)
    if options.seed:
        seed.fill(service, options.random_seed)
    clockwork = threading.Thread(target=agenda.run, name="agenda")
    clockwork.start()
    server.start()
    try:
        _announce(options, server.port)
        ending.wait()
    finally:
        server.stop()
        agenda.stop()
        clockwork.join()
    return 130 if signal.SIGINT in received else 0


def _announce(options: argparse.Namespace, port: int) -> None:
    host = f"[{options.host}]" if ":" in options.host else options.host
    endpoint = f"http://{host}:{port}"
    environment = client_environment(endpoint)
    if options.ready_json:
        accounts = [
            {key: value for key, value in vars(account).items() if value is not None} for account in ACCOUNTS
        ]
        ready = {
            "endpoint": endpoint,
            "environment": environment,
            "accounts": accounts,
            "regions": list(ENABLED),
            "not_opted_in": NOT_OPTED_IN,
            "denied": DENIED,
        }
        _print(json.dumps(ready))
        return
    _print(f"EC2 sandbox on {endpoint}; Ctrl-C ends it. In another shell:\n")
    _print("unset AWS_PROFILE AWS_SESSION_TOKEN")
    for name, value in environment.items():
        _print(f"export {name}={value}")
    _print()
    if options.seed:
        _print("aws ec2 describe-store-image-tasks --filters Name=task-state,Values=InProgress")
        _print(
            "aws ec2 describe-images --owners self --max-items 3 --query 'Images[].[ImageId,Name]' --output text"
        )
    else:
        _print("aws s3 mb s3://my-archive")
        _print("aws ec2 register-image --name my-image")
        _print("aws ec2 create-store-image-task --bucket my-archive --image-id ami-...")
        _print("aws ec2 describe-store-image-tasks")


def _print(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _forget_real_credentials() -> None:
    """Leave nothing in the environment by which boto could find credentials or settings, nor any that bend moto."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO_", "MOTO_"))]:
        del os.environ[name]
    os.environ |= client_environment("http://127.0.0.1:9")  # should boto ever be used, nobody listens
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # 1,301 AMIs in every account and Region


def _wait_for_end_of_stdin(ending: threading.Event) -> None:
    # Bare reads: a thread blocked in a buffered one holds a lock that the interpreter needs to exit.
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
        "--port", type=_port, default=5001, help="port to listen on, 0: any free one (%(default)s)"
    )
    parser.add_argument(
        "--seed",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="begin with AMIs, buckets and tasks in all accounts and Regions, and keep starting tasks",
    )
    parser.add_argument(
        "--random-seed",
        metavar="N",
        type=int,
        default=1,
        help="another N is another seeded world (%(default)s)",
    )
    parser.add_argument(
        "--speed",
        metavar="FACTOR",
        type=_positive,
        default=1.0,
        help="how much faster time goes for tasks; at 1 a store takes about two minutes (%(default)s)",
    )
    parser.add_argument(
        "--page-size",
        metavar="N",
        type=_page_size,
        default=200,
        help="tasks of a page where MaxResults is not given, 1 to 200 (%(default)s)",
    )
    parser.add_argument(
        "--throttle",
        metavar="CAPACITY:REFILL",
        type=_rate,
        default=Rate(),
        help="DescribeStoreImageTasks' token bucket per account and Region: tokens, tokens per second (50:0.5)",
    )
    parser.add_argument(
        "--no-throttle", dest="throttle", action="store_const", const=None, help="never throttle"
    )
    parser.add_argument(
        "--ready-json",
        action="store_true",
        help="print one line of JSON when ready: endpoint, environment, accounts, regions, not_opted_in, denied",
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
    except OSError as error:
        _refuse(f"{host!r} is no address: {error.strerror}")
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        _refuse(f"{host!r} is not a loopback address, and a sandbox must not be reached from elsewhere")
    return host


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        _refuse(f"{text!r} is no port (0 to 65535)")
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
    if not (text.isdecimal() and 1 <= int(text) <= 200):
        _refuse(f"{text!r} is not a number from 1 to 200")
    return int(text)


def _rate(text: str) -> Rate:
    capacity, colon, refill = text.partition(":")
    try:
        rate = Rate(float(capacity), float(refill))
    except ValueError:
        rate = Rate(0, 0)
    if not colon or not 1 <= rate.capacity < float("inf") or not 0 <= rate.refill < float("inf"):
        _refuse(f"{text!r} is not CAPACITY:REFILL, as 50:0.5")
    return rate
