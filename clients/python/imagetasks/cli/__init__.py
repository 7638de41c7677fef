"""The command line: picks a command, runs it, and turns every ending into an exit code.

Each command is a module of this package with a function `run(arguments) -> exit code`, imported only when
it is asked for; it may print to stdout what was asked, to stderr everything else.
"""

import argparse
import os
import sys
from importlib import import_module
from typing import Protocol, cast

# In the order of the help.
COMMANDS = {
    "stream": "store tasks of all accounts and Regions, printed as each Region answers",
    "watch": "store tasks as they progress: a live table, or a line for each change",
    "targets": "the accounts and Regions that can be asked, and how the gateway stands with each",
    "ec2": "the AWS CLI's own words: imagetasks ec2 describe-store-image-tasks ...",
    "protoset": "the path of the contract's descriptor set, for grpcurl and the like",
    "completion": "a script that completes these words in a shell",
}

OK = 0
INCOMPLETE = 1
USAGE = 2
CALL_FAILED = 3
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES = """\
exit codes:
  0    every target answered
  1    the answer is there, but some target failed; stderr names each
  2    the command line is wrong
  3    the call failed: no gateway there, not permitted, deadline, ...
  130  Ctrl-C
"""

_EPILOG = f"""\
examples:
  imagetasks stream --filters Name=task-state,Values=InProgress
  imagetasks targets --endpoint-url https://gateway.example.com
  imagetasks COMMAND --help

{EXIT_CODES}"""


class _Command(Protocol):
    def run(self, arguments: list[str]) -> int: ...


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words behind the program's name; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: From argparse, or with the exit code of a failed call.
    """
    # gRPC's own log lines would stand among ours; the variable is read when gRPC is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for output in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is shown escaped instead of ending the command.
        output.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left, as `head` does. Python would complain when it flushes stdout at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        # Ctrl-C in the middle of a wait inside gRPC can end in another error, of a lock half taken.
        if _is_interrupt(error):
            return INTERRUPTED
        raise
    return code


def _is_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _run(arguments: list[str]) -> int:
    # The AWS CLI's own words: its global options may stand before the group, so it reads all of them.
    if "ec2" in arguments and (ec2 := import_module("imagetasks.cli.ec2")).is_meant(arguments):
        return cast("int", ec2.run(arguments))
    listed = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="imagetasks",
        description=f"Asks an imagetasks gateway for the store tasks of AMIs.\n\ncommands:\n{listed}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="imagetasks [--help] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    # Only what stands before the command is this parser's.
    own = 0
    while own < len(arguments) and arguments[own].startswith("-"):
        own += 1
    chosen = parser.parse_args(arguments[: own + 1])
    command = cast("_Command", import_module(f"imagetasks.cli.{chosen.command}"))
    return command.run(arguments[own + 1 :])


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # Read only when asked for: finding the distribution takes longer than all the rest.
        sys.stdout.write(f"imagetasks {import_module('imagetasks').__version__}\n")
        parser.exit()
