"""The three parsers a command line goes through, as in the AWS CLI: global options, command, its own options.

The first takes its options wherever they stand, so that unique prefixes mean what they mean there: `--p` is
--profile, though the command has a --page-size. Options that the AWS CLI lacks are taken out before, by
their full names only: they make no prefix ambiguous.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PROGRAM = "imagetasks"

USAGE = """\
imagetasks [options] ec2 <command> [parameters]

  imagetasks ec2 help
  imagetasks ec2 <command> help
"""

_CHOICES_A_LINE = 2

# The gateway's own options, and whether they take a value.
OWN: Mapping[str, bool] = {
    "--show-targets": False,
    "--max-age": True,
    "--forbid-stale": False,
    "--token-file": True,
    "--client-certificate": True,
    "--client-key": True,
}


class Parser(argparse.ArgumentParser):
    """Reads words, and explains a wrong choice in the AWS CLI's form."""

    def __init__(self) -> None:
        super().__init__(prog=PROGRAM, usage=USAGE, add_help=False)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else list(action.choices)
        if choices is None or value in choices:
            return
        lines = [
            " | ".join(f"{choice:<40}" for choice in choices[start : start + _CHOICES_A_LINE])
            for start in range(0, len(choices), _CHOICES_A_LINE)
        ]
        text = "\n".join(["Invalid choice, valid choices are:\n", *lines])
        from difflib import get_close_matches  # noqa: PLC0415 - only for this text

        if close := get_close_matches(value, choices, cutoff=0.8):
            text += f"\n\n\nInvalid choice: {value!r}, maybe you meant:\n\n"
            text += "\n".join(f"  * {choice}" for choice in close)
        raise argparse.ArgumentError(action, text)


def take_own(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The gateway's own options, and the words without them."""
    parser = argparse.ArgumentParser(prog=PROGRAM, usage=USAGE, add_help=False, allow_abbrev=False)
    for option, takes_value in OWN.items():
        if takes_value:
            parser.add_argument(option)
        else:
            parser.add_argument(option, action="store_true")
    if not any(word.partition("=")[0] in OWN for word in words):
        return parser.parse_args([]), list(words)
    return parser.parse_known_args(words)


def take_global(words: Sequence[str], groups: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The AWS CLI's global options and the group, as `ec2`; and the words without them."""
    parser = Parser()
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--no-verify-ssl", action="store_false", dest="verify_ssl")
    parser.add_argument("--no-paginate", action="store_false", dest="paginate")
    parser.add_argument("--output", choices=["json", "text", "table"])
    parser.add_argument("--query")
    parser.add_argument("--profile")
    parser.add_argument("--region")
    parser.add_argument("--version", action=_Version, nargs=0)
    parser.add_argument("--color", choices=["on", "off", "auto"], default="auto")
    parser.add_argument("--no-sign-request", action="store_false", dest="sign_request")
    parser.add_argument("--ca-bundle")
    parser.add_argument("--cli-read-timeout", dest="read_timeout")
    parser.add_argument("--cli-connect-timeout", dest="connect_timeout")
    # Warns of version 2 of the AWS CLI: accepted, and without effect.
    parser.add_argument("--v2-debug", action="store_true", dest="v2_debug")
    parser.add_argument("command", choices=groups)
    return parser.parse_known_args(words)


def take_command(words: Sequence[str], commands: Sequence[str]) -> tuple[str, list[str]]:
    """The command within the group, and the words without it."""
    parser = Parser()
    parser.add_argument("operation", choices=commands)
    chosen, rest = parser.parse_known_args(words)
    return chosen.operation, rest


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # Read only when asked for: finding the distribution takes longer than all the rest.
        from imagetasks import __version__  # noqa: PLC0415

        python = ".".join(str(part) for part in sys.version_info[:3])
        sys.stdout.write(f"{PROGRAM}/{__version__} Python/{python}\n")
        parser.exit()
