"""What is asked beside EC2's parameters: which targets, how fresh, in what pages."""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from imagetasks.cli.ec2.failures import Failure

PAGE_VARIABLE = "IMAGETASKS_EC2_PAGE_SIZE"
# The first that is set counts. AWS_PROFILE is not among them: an account is named by --profile alone.
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
ALL = "all"

# EC2's page where MaxResults is absent, and its largest.
_EC2_PAGE = 200


@dataclass(frozen=True)
class Scope:
    """Which targets are asked, and how fresh the answer must be.

    Attributes:
        accounts: The gateway's names of accounts; empty: all.
        regions: Regions; empty: all.
        max_age: Seconds an answer may be old; None: the gateway's default.
        forbid_stale: Rather an error than tasks that are older.
    """

    accounts: Sequence[str] = ()
    regions: Sequence[str] = ()
    max_age: float | None = None
    forbid_stale: bool = False


def of(chosen: argparse.Namespace, own: argparse.Namespace) -> Scope:
    """The scope that the options and the environment name.

    Raises:
        Failure: --max-age is no number of seconds.
    """
    region = chosen.region or next(filter(None, map(os.environ.get, REGION_VARIABLES)), ALL)
    return Scope(
        accounts=_names(chosen.profile or ""),
        regions=() if region == ALL else _names(region),
        max_age=None if own.max_age is None else _seconds(own.max_age),
        forbid_stale=own.forbid_stale,
    )


def unasked_page() -> int:
    """Tasks of a page where the command line does not say.

    Raises:
        Failure: The environment's number is none that EC2 takes.
    """
    text = os.environ.get(PAGE_VARIABLE) or str(_EC2_PAGE)
    if not text.isdecimal() or not 1 <= int(text) <= _EC2_PAGE:
        raise Failure(f"{PAGE_VARIABLE} is not a number from 1 to {_EC2_PAGE}: {text}")
    return int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Failure(f"Bad value for --max-age {text}: not a number of seconds")
    return seconds
