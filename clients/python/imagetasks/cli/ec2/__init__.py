"""`imagetasks ec2 ...`: the AWS CLI's commands on EC2, word for word, asked of the gateway.

What differs from `aws ec2 ...`, and why, is in docs/aws-cli.md. Each command is a module with a function
`run(words, global options, own options) -> exit code`; nothing is imported that the command does not use.
"""

import argparse
import gc
import sys
from importlib import import_module
from typing import Protocol, cast

from imagetasks.cli.ec2 import parsers
from imagetasks.cli.ec2.failures import UnknownOptions

GROUP = "ec2"
# Module names by command; in the order of the help.
COMMANDS = {
    "describe-store-image-tasks": "describe",
    "wait": "wait",
}

FAILED = 255
INTERRUPTED = 130
_HELP_OPTIONS = {"--help", "-h"}


class _Command(Protocol):
    def run(self, words: list[str], chosen: argparse.Namespace, own: argparse.Namespace) -> int: ...


def is_meant(words: list[str]) -> bool:
    """Whether a command line is the AWS CLI's: global options may stand before `ec2`."""
    first = words[0] if words else ""
    own = first in _HELP_OPTIONS or first == "--version"
    return first == GROUP or (first.startswith("--") and not own and GROUP in words)


def run(words: list[str]) -> int:
    """Runs a command line.

    Args:
        words: All behind the program's name, `ec2` included.

    Returns:
        The exit code: 0; 255 where EC2, the gateway or the command line was at fault; 130 after Ctrl-C.

    Raises:
        SystemExit: With 2 where argparse found fault, with 0 after --version.
    """
    if _HELP_OPTIONS.intersection(words):
        from imagetasks.cli.ec2 import manual  # noqa: PLC0415

        return manual.show(next((word for word in words if word in COMMANDS), GROUP))
    own, words = parsers.take_own(words)
    return _run(words, own)


def _run(words: list[str], own: argparse.Namespace) -> int:
    chosen, rest = parsers.take_global(words, [GROUP])
    chosen.reset = ""
    try:
        _prepare(chosen)
        name, rest = parsers.take_command(rest, [*COMMANDS, "help"])
        if name == "help":
            from imagetasks.cli.ec2 import manual  # noqa: PLC0415

            return manual.show(GROUP)
        command = cast("_Command", import_module(f"imagetasks.cli.ec2.{COMMANDS[name]}"))
        return command.run(rest, chosen, own)
    except UnknownOptions as unknown:
        sys.stderr.write(f"usage: {parsers.USAGE}\n{unknown}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - as the AWS CLI: whatever it was, its text and 255
        if chosen.debug:
            import traceback  # noqa: PLC0415

            traceback.print_exception(error)
        for piece in ("\n", str(error), "\n"):
            sys.stderr.write(f"{piece}{chosen.reset}")
        return FAILED
    finally:
        if chosen.reset and sys.stdout.isatty():
            sys.stdout.write(chosen.reset)
        # The process ends now: nothing is gained by looking once more for garbage, a fifth of the whole time.
        gc.freeze()


def _prepare(chosen: argparse.Namespace) -> None:
    """Reads the global options that have a form, in the AWS CLI's order."""
    if chosen.query is not None:
        import jmespath  # noqa: PLC0415 - slow to import, and seldom used

        try:
            chosen.query = jmespath.compile(chosen.query)
        except Exception as error:
            raise ValueError(f"Bad value for --query {chosen.query}: {error}") from error
    if chosen.endpoint_url is not None:
        from imagetasks.channel import Endpoint  # noqa: PLC0415 - gRPC comes with it

        try:
            Endpoint.parse(chosen.endpoint_url)
        except ValueError as error:
            raise ValueError(f'Bad value for --endpoint-url "{chosen.endpoint_url}": {error}') from error
    for timeout in (chosen.read_timeout, chosen.connect_timeout):
        if timeout is not None:
            int(timeout)
