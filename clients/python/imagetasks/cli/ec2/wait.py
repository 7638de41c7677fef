"""`imagetasks ec2 wait store-image-task-complete`: returns when the tasks that were asked for have completed.

Words, texts and exit codes are the AWS CLI's. What it waits for is decided once, by a fresh listing of all
pages (`meant`): with image ids the newest task of each AMI, else the tasks that are in progress then. These
are watched (`following`): nothing is polled, there is no limit of 40 tries, and neither a throttle nor
somebody's old failure ends it.
"""

import argparse
import math
import time
from typing import Any

from imagetasks.cli.ec2 import describe, parsers
from imagetasks.cli.ec2.failures import Failure, ServiceError, WaiterError
from imagetasks.cli.ec2.model import INPUT
from imagetasks.cli.ec2.validation import validate

NAME = "store-image-task-complete"
PAGE = "wait"

OK = 0
FAILED = 255


def run(words: list[str], chosen: argparse.Namespace, own: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        words: Behind `wait`.
        chosen: The global options.
        own: The gateway's own options.

    Returns:
        The exit code.

    Raises:
        Failure: It ends with a text on stderr.
    """
    if not words:
        usage = f"usage: {parsers.PROGRAM} [options] <command> <subcommand> [parameters]"
        raise Failure(f"{usage}\n{parsers.PROGRAM}: error: too few arguments")
    name, words = parsers.take_command(words, [NAME, "help"])
    parser = describe.command_parser()
    # The gateway's own: the AWS CLI gives up after 40 tries, 5 seconds apart.
    parser.add_argument("--timeout")
    options, strange = (
        (argparse.Namespace(help="help"), []) if name == "help" else describe.parse(words, parser)
    )
    if options.help == "help":
        from imagetasks.cli.ec2 import manual  # noqa: PLC0415

        return manual.show(PAGE)
    given, _ = describe.read(options, strange, chosen)
    if options.generate_cli_skeleton:
        return describe.write_skeleton(options, given, chosen)
    seconds = _seconds(options.timeout)
    # Pages are no option of a waiter: this says so, as the AWS CLI does.
    validate(given, INPUT)
    try:
        return _wait(given, chosen, own, time.monotonic() + seconds)
    except ServiceError as error:
        raise WaiterError(f"An error occurred ({error.code}): {error.message}") from error


def _wait(given: dict[str, Any], chosen: argparse.Namespace, own: argparse.Namespace, until: float) -> int:
    # gRPC, at last: nothing that ends before needs it.
    from imagetasks.cli.ec2 import following, refusals, scope  # noqa: PLC0415
    from imagetasks.cli.ec2.gateway import Gateway  # noqa: PLC0415

    if refusal := refusals.of_request(given):
        raise ServiceError(*refusal)
    gateway = Gateway(chosen, own, scope.of(chosen, own), None, until)
    try:
        return OK if following.wait(gateway, given, until) else FAILED
    finally:
        gateway.close()


def _seconds(text: str | None) -> float:
    try:
        seconds = math.inf if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise Failure(f"Bad value for --timeout {text}: not a number of seconds above 0")
    return seconds
