"""`imagetasks ec2 describe-store-image-tasks`: how far the storing of AMIs in S3 has come."""

import argparse
import sys
from typing import Any

from imagetasks.cli.ec2 import parameters as parameter
from imagetasks.cli.ec2.failures import PagingError, UnknownOptions
from imagetasks.cli.ec2.model import FILTERS, INPUT, STRINGS, sample_input, sample_output
from imagetasks.cli.ec2.parsers import Parser
from imagetasks.cli.ec2.validation import validate

NAME = "describe-store-image-tasks"

OK = 0
FAILED = 255

_PAGING_OPTIONS = ("starting_token", "page_size", "max_items")


def run(words: list[str], chosen: argparse.Namespace, own: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        words: Its own options.
        chosen: The global options.
        own: The gateway's own options.

    Returns:
        The exit code.

    Raises:
        Failure: It ends with a text on stderr.
    """
    options, strange = parse(words, command_parser())
    if options.help == "help":
        from imagetasks.cli.ec2 import manual  # noqa: PLC0415

        return manual.show(NAME)
    given, paginate = read(options, strange, chosen)
    if options.generate_cli_skeleton:
        return write_skeleton(options, given, chosen)
    return _ask(given, chosen, own, paginate=paginate)


def read(
    options: argparse.Namespace, strange: list[str], chosen: argparse.Namespace
) -> tuple[dict[str, Any], bool]:
    """EC2's parameters of a command line, and whether it is paginated.

    Raises:
        Failure: They cannot be read.
    """
    if strange:
        raise UnknownOptions(f"Unknown options: {', '.join(strange)}")
    paginate = _is_paginated(options, paginate=chosen.paginate)
    given = _parameters(options)
    if options.cli_input_json is not None:
        parameter.add_input_json(given, options.cli_input_json)
    return given, paginate


def write_skeleton(options: argparse.Namespace, given: dict[str, Any], chosen: argparse.Namespace) -> int:
    """Prints what --generate-cli-skeleton asks for."""
    if options.generate_cli_skeleton == "output":
        return _write_sample(given, chosen)
    from imagetasks.cli.ec2 import formatting  # noqa: PLC0415

    formatting.write_skeleton(sample_input())
    return OK


def parse(words: list[str], parser: Parser) -> tuple[argparse.Namespace, list[str]]:
    """A command's own options, and the words that mean nothing."""
    if words == ["help"]:
        return argparse.Namespace(help="help"), []
    options, strange = parser.parse_known_args(words)
    if options.help is not None and options.help != "help":
        strange.append(options.help)
    return options, strange


def command_parser() -> Parser:
    """The command's own options."""
    parser = Parser()
    parser.add_argument("--image-ids", nargs="*")
    parser.add_argument("--dry-run", action="store_true", default=None)
    parser.add_argument("--no-dry-run", action="store_false", default=None, dest="dry_run")
    parser.add_argument("--filters", nargs="*")
    # EC2's own paging, which the AWS CLI does not document.
    parser.add_argument("--next-token")
    parser.add_argument("--max-results")
    parser.add_argument("--cli-input-json")
    parser.add_argument("--starting-token")
    parser.add_argument("--page-size", type=int)
    parser.add_argument("--max-items", type=int)
    parser.add_argument("--generate-cli-skeleton", nargs="?", const="input", choices=["input", "output"])
    parser.add_argument("help", nargs="?")
    return parser


def _is_paginated(options: argparse.Namespace, *, paginate: bool) -> bool:
    if paginate and options.next_token is None and options.max_results is None:
        return True
    used = [name for name in _PAGING_OPTIONS if getattr(options, name)]
    if used:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in used)
        raise PagingError(f"Cannot specify --no-paginate along with pagination arguments: {names}")
    return False


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    """EC2's parameters, in the order of its model, and what the paging needs."""
    given: dict[str, Any] = {}
    if (image_ids := parameter.resolve("--image-ids", options.image_ids)) is not None:
        given["ImageIds"] = parameter.unpack("--image-ids", image_ids, STRINGS)
    if options.dry_run is not None:
        given["DryRun"] = options.dry_run
    if (filters := parameter.resolve("--filters", options.filters)) is not None:
        given["Filters"] = parameter.unpack("--filters", filters, FILTERS)
    if (token := parameter.resolve("--next-token", options.next_token)) is not None:
        given["NextToken"] = token
    if (size := parameter.resolve("--max-results", options.max_results)) is not None:
        given["MaxResults"] = int(size)
    # Read twice: here only to say in the option's name that it cannot be.
    parameter.resolve("--cli-input-json", options.cli_input_json)
    paging = {
        "StartingToken": parameter.resolve("--starting-token", options.starting_token),
        "PageSize": options.page_size,
        "MaxItems": options.max_items,
    }
    if options.max_items is not None and options.max_items <= 0:
        sys.stderr.write("warning: Non-positive values for --max-items may result in undefined behavior.\n")
    paging = {name: value for name, value in paging.items() if value is not None}
    if paging:
        given["PaginationConfig"] = paging
    return given


def _write_sample(given: dict[str, Any], chosen: argparse.Namespace) -> int:
    from imagetasks.cli.ec2 import formatting  # noqa: PLC0415

    validate(given, INPUT)
    formatting.of(chosen).write_answer(sample_output())
    return OK


def _ask(
    given: dict[str, Any], chosen: argparse.Namespace, own: argparse.Namespace, *, paginate: bool
) -> int:
    # gRPC, at last: nothing that ends before needs it.
    from imagetasks.cli.ec2 import formatting, scope  # noqa: PLC0415
    from imagetasks.cli.ec2.gateway import Gateway  # noqa: PLC0415

    gateway = Gateway(chosen, own, scope.of(chosen, own), scope.unasked_page())

    def call(parameters: dict[str, Any]) -> dict[str, Any]:
        validate(parameters, INPUT)
        return gateway.describe(parameters)

    try:
        if paginate:
            from imagetasks.cli.ec2.paging import Listing  # noqa: PLC0415

            listing = Listing(call, given)
            formatter = formatting.of(chosen)
            if not formatter.is_paged and not listing.is_partial:
                # Nobody sees where the pages end: the fewer the better.
                gateway.unasked_page = None
            formatter.write_listing(listing)
        else:
            answer = call(given)
            formatting.of(chosen).write_answer(answer)
    finally:
        gateway.close()
    sys.stdout.flush()
    code = OK
    for text, failed in gateway.troubles():
        sys.stderr.write(f"\n{text}\n" if failed else f"{text}\n")
        code = FAILED if failed else code
    return code
