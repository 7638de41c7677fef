"""Which accounts and Regions the sandbox has. Constants and plain lookups; knows nothing of moto."""

import os
from dataclasses import dataclass
from enum import StrEnum


class OptInStatus(StrEnum):
    """EC2's words for whether an account can use a Region."""

    NOT_REQUIRED = "opt-in-not-required"
    OPTED_IN = "opted-in"
    NOT_OPTED_IN = "not-opted-in"


@dataclass(frozen=True)
class Account:
    """One AWS account. Without a role it is the account of the sandbox's own access key."""

    name: str
    account_id: str
    role_arn: str | None = None


ACCOUNTS = (
    Account("main", "123456789012"),  # moto's default account: what an unknown access key belongs to
    Account("images-dev", "111122223333", "arn:aws:iam::111122223333:role/imagetasks"),
    Account("images-prod", "444455556666", "arn:aws:iam::444455556666:role/imagetasks"),
)

NOT_OPTED_IN = "me-central-1"
DENIED = "sa-east-1"

REGIONS = {
    "ap-northeast-1": OptInStatus.NOT_REQUIRED,
    "ap-south-1": OptInStatus.NOT_REQUIRED,
    "ap-southeast-2": OptInStatus.NOT_REQUIRED,
    "ca-central-1": OptInStatus.NOT_REQUIRED,
    "eu-central-1": OptInStatus.NOT_REQUIRED,
    "eu-north-1": OptInStatus.NOT_REQUIRED,
    "eu-south-1": OptInStatus.OPTED_IN,
    "eu-west-1": OptInStatus.NOT_REQUIRED,
    NOT_OPTED_IN: OptInStatus.NOT_OPTED_IN,
    DENIED: OptInStatus.NOT_REQUIRED,
    "us-east-1": OptInStatus.NOT_REQUIRED,
    "us-east-2": OptInStatus.NOT_REQUIRED,
    "us-west-1": OptInStatus.NOT_REQUIRED,
    "us-west-2": OptInStatus.NOT_REQUIRED,
}
"""Every Region of the sandbox; EC2 in any other answers as in one that is not enabled."""

ENABLED = tuple(name for name, status in REGIONS.items() if status is not OptInStatus.NOT_OPTED_IN)
"""What DescribeRegions lists, so with the denied Region: a policy hides nothing there."""

HOME_REGION = "us-east-1"


def client_environment(endpoint: str) -> dict[str, str]:
    """The environment variables that make an AWS client talk to the sandbox as its main account.

    AWS_PROFILE and AWS_SESSION_TOKEN have to be unset besides; a variable cannot say so.

    Args:
        endpoint: The sandbox's address, as ``http://127.0.0.1:5001``.
    """
    return {
        # The key of AWS's own examples, nobody's. moto tells accounts by keys of 20 characters.
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": HOME_REGION,
        "AWS_DEFAULT_REGION": HOME_REGION,  # the only one that botocore reads
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
