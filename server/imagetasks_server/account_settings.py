"""How accounts and organizations are configured. `config` puts these tables into the settings."""

import os
import string
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import pydantic
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    field_validator,
    model_validator,
)

from imagetasks_server.amounts import Seconds

ACCOUNT_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"

AccountName = Annotated[str, StringConstraints(pattern=f"^{ACCOUNT_NAME}$")]
AccountId = Annotated[str, StringConstraints(pattern=r"^[0-9]{12}$")]
RegionName = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$")]
RoleArn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/.+$")]
ExternalId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2, max_length=1224)
]
UnitId = Annotated[str, StringConstraints(pattern=r"^(r-[0-9a-z]{4,32}|ou-[0-9a-z]{4,32}-[0-9a-z]{8,32})$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+[^\s]*$")]


def _short(path: object) -> object:
    # The system's own word for it would name no key.
    if isinstance(path, str) and (
        len(os.fsencode(path)) >= 4096 or any(len(os.fsencode(part)) > 255 for part in path.split("/"))  # noqa: PLR2004  # PATH_MAX, NAME_MAX
    ):
        raise ValueError("is too long for the name of a file")
    return path


FilePath = Annotated[pydantic.FilePath, BeforeValidator(_short)]
Partition = Literal["aws", "aws-us-gov", "aws-cn"]

# Where an account's identity and Regions are asked unless something else is configured.
HOME_REGIONS: Final[dict[str, str]] = {
    "aws": "us-east-1",
    "aws-us-gov": "us-gov-west-1",
    "aws-cn": "cn-north-1",
}
_PLACEHOLDERS: Final = {"account_name", "account_id"}


class Table(BaseModel):
    """A table of the configuration; a key it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def partition_of(region: str) -> str:
    """The partition a Region belongs to, by its name; empty for one that is not supported."""
    if region.startswith("us-gov-"):
        return "aws-us-gov"
    if region.startswith("cn-"):
        return "aws-cn"
    # The isolated and sovereign partitions.
    return "" if region.startswith(("us-iso", "eu-iso", "eusc-")) else "aws"


class Access(Table):
    """How AWS is reached, by what credentials, and where."""

    profile: str | None = None
    """A profile of the AWS configuration files. Absent: the ambient credential chain."""
    external_id: ExternalId | None = None
    """Sent with every role that is assumed; the roles' trust policies ask for it. Absent: none is sent."""
    partition: Partition = "aws"
    """aws, aws-us-gov or aws-cn. Credentials are good for one partition only."""
    regions: tuple[RegionName, ...] = ()
    """Regions. Empty: all that EC2's DescribeRegions calls enabled. Fewer: fewer calls to EC2."""
    exclude_regions: tuple[RegionName, ...] = ()
    """Regions that are no targets, enabled or not: those a service control policy denies, for example."""
    home_region: RegionName | None = None
    """Where STS and DescribeRegions are asked. Absent: AWS_REGION, else AWS_DEFAULT_REGION or the
    profile's, if it is of the partition; else us-east-1, us-gov-west-1 or cn-north-1."""
    endpoint_url: Url | None = None
    """EC2's address, of all Regions: a gateway's or a test's. Absent: AWS's own for each Region."""
    sts_endpoint_url: Url | None = None
    """STS's address: that of a VPC endpoint, for example. Absent: AWS's own in `home_region`."""
    use_fips: bool = False
    """Use AWS's FIPS endpoints. Not in aws-cn, which has none, and not with addresses of your own."""
    ca_bundle: FilePath | None = None
    """PEM file of the authorities that AWS's certificate is checked against: for a proxy that opens TLS.
    Absent: AWS_CA_BUNDLE, else those that come with botocore."""
    proxy: Url | None = None
    """HTTP proxy to AWS, as "http://proxy:3128". Absent: HTTPS_PROXY and NO_PROXY."""

    @field_validator("ca_bundle")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.absolute() if path else None

    @model_validator(mode="after")
    def _one_partition(self) -> Self:
        for key, regions in (
            ("regions", self.regions),
            ("exclude_regions", self.exclude_regions),
            ("home_region", (self.home_region,) if self.home_region else ()),
        ):
            for region in regions:
                if partition_of(region) != self.partition:
                    raise ValueError(f"{key}: {region} is not of partition {self.partition}")
        if self.regions and not set(self.regions).difference(self.exclude_regions):
            raise ValueError("exclude_regions: no Region is left of regions")
        if self.use_fips and self.partition == "aws-cn":
            raise ValueError("use_fips: aws-cn has no FIPS endpoints")
        if self.use_fips and (self.endpoint_url or self.sts_endpoint_url):
            raise ValueError("use_fips: not together with endpoint_url or sts_endpoint_url")
        return self


class AccountSettings(Access):
    """One AWS account: how to come by its credentials, and its Regions."""

    name: AccountName
    """What callers call it. It need not be AWS's word for it."""
    role_arn: RoleArn | None = None
    """A role to assume with the ambient credentials, or with `profile`'s. Absent: those are the account's."""

    @model_validator(mode="after")
    def _role_fits(self) -> Self:
        _check_role(self.role_arn, self.partition)
        # A profile may name a role of its own that needs one, but then it says so itself.
        if self.external_id and not self.role_arn:
            raise ValueError("external_id: there is no role_arn to send it with")
        return self


class OrganizationSettings(Access):
    """The accounts of an AWS organization, found out and kept up to date."""

    name: AccountName
    """What it is called where its accounts cannot be listed; no account may have this name."""
    role_arn: RoleArn | None = None
    """A role to assume for listing the accounts: in the management account or a delegated administrator's.
    Absent: the credentials as they are."""
    role_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+=,.@/-]+$", max_length=512)]
    """The role to assume in each account, with its path if it has one; the same name in all."""
    name_template: str = "{account_name}"
    """What callers call an account: of {account_name} and {account_id}. What a name cannot contain becomes
    "-"; accounts that would share a name get their id appended."""
    units: tuple[UnitId, ...] = ()
    """Organizational units (or the root) whose accounts are meant, with all units below. Empty: all."""
    exclude_accounts: tuple[AccountId, ...] = ()
    """Accounts that are left out: the management account, which rarely has the role, for example."""
    refresh: Seconds = 900.0
    """Seconds between two listings. Less: a new account is there sooner; more: fewer calls to AWS."""

    @field_validator("name_template")
    @classmethod
    def _placeholders(cls, template: str) -> str:
        try:
            used = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
            template.format(account_name="", account_id="")
        except (ValueError, IndexError, KeyError, AttributeError):
            used = set()
        if not used or used - _PLACEHOLDERS:
            raise ValueError("of {account_name} and {account_id}, at least one")
        return template

    @model_validator(mode="after")
    def _role_fits(self) -> Self:
        _check_role(self.role_arn, self.partition)
        return self


def _check_role(role_arn: str | None, partition: str) -> None:
    if role_arn and (theirs := role_arn.split(":")[1]) != partition:
        raise ValueError(f"role_arn: it is of partition {theirs}, and partition says {partition}")
