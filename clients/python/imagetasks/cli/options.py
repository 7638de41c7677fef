"""The options that commands share, and the way from them to a client."""

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from imagetasks import blocking, channel, cli, requests
from imagetasks.cli.text import explain
from imagetasks.errors import Error
from imagetasks.v1 import store_image_tasks_pb2 as pb


def parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command's parser, with the options that every command has that asks a gateway."""
    made = argparse.ArgumentParser(
        prog=f"imagetasks {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--output",
        choices=("table", "json"),
        default="table",
        help="for people, or for programs (default: table)",
    )
    which = made.add_argument_group("which targets")
    which.add_argument(
        "--accounts",
        nargs="+",
        action=_Several,
        default=[],
        metavar="NAME",
        help="the gateway's names of accounts (default: all)",
    )
    which.add_argument(
        "--regions", nargs="+", action=_Several, default=[], metavar="REGION", help="Regions (default: all)"
    )
    gateway = made.add_argument_group("the gateway")
    gateway.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="host:port, http://host:port, https://host:port or unix:path; several are ipv4:ADDRESS:PORT,... "
        f"(default: {channel.ENDPOINT_VARIABLE}, else {channel.DEFAULT_ENDPOINT})",
    )
    gateway.add_argument(
        "--timeout",
        type=_not_negative,
        default=requests.DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="give up after this time; 0: never (default: %(default)g)",
    )
    gateway.add_argument("--ca-bundle", metavar="FILE", help="certificates to trust, PEM")
    gateway.add_argument("--client-certificate", metavar="FILE", help="for mutual TLS, PEM")
    gateway.add_argument("--client-key", metavar="FILE", help="the certificate's private key, PEM")
    gateway.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"a file with the bearer token to send (default: {channel.TOKEN_VARIABLE})",
    )
    return made


def add_selection(made: argparse.ArgumentParser) -> None:
    """Adds the options that say which tasks, and how fresh."""
    tasks = add_tasks(made)
    tasks.add_argument(
        "--max-age",
        type=_not_negative,
        metavar="SECONDS",
        help="how old the answer may be; 0: read anew (default: the gateway's)",
    )
    tasks.add_argument(
        "--forbid-stale",
        action="store_true",
        help="a target that cannot be read now fails, in place of showing what was last known of it",
    )


def add_tasks(made: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options that say which tasks."""
    tasks = made.add_argument_group("which tasks")
    tasks.add_argument(
        "--image-ids",
        nargs="+",
        action=_Several,
        default=[],
        metavar="AMI",
        help="tasks of these AMIs (default: all)",
    )
    tasks.add_argument(
        "--filters",
        nargs="+",
        action="extend",
        type=_filter,
        default=[],
        metavar="Name=NAME,Values=VALUE[,VALUE...]",
        help="EC2's filters: task-state (InProgress, Completed, Failed) and bucket; * and ? are wildcards",
    )
    return tasks


@contextmanager
def client(made: argparse.ArgumentParser, chosen: argparse.Namespace) -> Iterator[blocking.Client]:
    """Connects as the options say; an error of any call within becomes one line on stderr.

    Raises:
        SystemExit: With USAGE if the options do not fit together, with CALL_FAILED if a call failed.
    """
    try:
        token = channel.chosen_token(chosen.token_file)
        connected = blocking.connect(
            chosen.endpoint_url,
            token=token,
            ca_bundle=chosen.ca_bundle,
            client_certificate=chosen.client_certificate,
            client_key=chosen.client_key,
            timeout=chosen.timeout,
        )
    except (ValueError, OSError) as error:
        made.error(str(error))
    with connected:
        try:
            yield connected
        except Error as error:
            raise failure(explain(error, channel.resolve(chosen.endpoint_url))) from None


def failure(message: str) -> SystemExit:
    """Says on stderr why the call failed; raise what it returns."""
    sys.stderr.write(f"imagetasks: {message}\n")
    return SystemExit(cli.CALL_FAILED)


class _Several(argparse.Action):
    """Collects values given with spaces, with commas, or by repeating the option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        given = cast("list[str]", values)  # always a list: nargs is "+"
        words = [word for value in given for word in value.split(",") if word]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *words])


def _filter(text: str) -> pb.Filter:
    name, separator, values = text.removeprefix("Name=").partition(",Values=")
    if not text.startswith("Name=") or not separator or not name or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form Name=NAME,Values=VALUE[,VALUE...]")
    return pb.Filter(name=name, values=values.split(","))


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number
