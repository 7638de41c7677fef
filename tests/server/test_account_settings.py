"""How accounts and organizations are configured, and what is refused, by its key."""

from pathlib import Path
from typing import Any

import pytest

from imagetasks_server.config import ConfigError, Settings, load

ROLE = "arn:aws:iam::111122223333:role/imagetasks"
ORGANIZATION = '[[organizations]]\nname = "company"\nrole_name = "imagetasks"\n'


def read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return load(str(path))


def account(**keys: Any) -> str:
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in {"name": "a", **keys}.items()]
    return "[[accounts]]\n" + "".join(f"{line}\n" for line in lines)


def test_an_account_takes_all_its_keys(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    text = account(
        role_arn=ROLE,
        external_id="secret/1",
        partition="aws",
        regions=["eu-central-1", "eu-west-1"],
        exclude_regions=["eu-west-1"],
        home_region="eu-central-1",
        endpoint_url="https://ec2.example",
        sts_endpoint_url="https://sts.example",
        ca_bundle=str(bundle),
        proxy="http://proxy:3128",
        profile="p",
    )
    (read_back,) = read(tmp_path, text).accounts
    assert read_back.role_arn == ROLE
    assert read_back.ca_bundle == bundle


def test_without_accounts_there_is_the_ambient_one_unless_there_is_an_organization(tmp_path: Path) -> None:
    assert [each.name for each in read(tmp_path, "").accounts] == ["default"]
    settings = read(tmp_path, ORGANIZATION)
    assert (settings.accounts, settings.organizations[0].name) == ((), "company")
    assert [each.name for each in read(tmp_path, ORGANIZATION + account()).accounts] == ["a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (account(rolearn=ROLE), "accounts.0.rolearn"),
        (account(role_arn="arn:aws-cn:iam::111122223333:role/x"), "role_arn: it is of partition aws-cn"),
        (account(partition="aws-us-gov", role_arn=ROLE), "partition says aws-us-gov"),
        (account(partition="aws-iso"), "accounts.0.partition"),
        (account(regions=["cn-north-1"]), "regions: cn-north-1 is not of partition aws"),
        (account(partition="aws-cn", home_region="us-east-1"), "home_region: us-east-1"),
        (account(exclude_regions=["us-gov-west-1"]), "exclude_regions: us-gov-west-1"),
        (account(regions=["us-east-1"], exclude_regions=["us-east-1"]), "no Region is left"),
        (account(regions=["us-iso-east-1"]), "us-iso-east-1 is not of partition aws"),
        (account(external_id="x1"), "external_id: there is no role_arn"),
        (account(role_arn=ROLE, external_id="no spaces"), "accounts.0.external_id"),
        (account(ca_bundle="/no/such.pem"), "accounts.0.ca_bundle"),
        (account(proxy="proxy:3128"), "accounts.0.proxy"),
        (account(endpoint_url="ec2"), "accounts.0.endpoint_url"),
        (account(partition="aws-cn") + "use_fips = true\n", "aws-cn has no FIPS endpoints"),
        (account(endpoint_url="https://x") + "use_fips = true\n", "use_fips: not together"),
        (account() + account(), "'a' stands twice"),
        ("accounts = []\n", "at least one account or organization"),
        (ORGANIZATION + account(name="company"), "'company' stands twice"),
        (ORGANIZATION + 'name_template = "x"\n', "at least one"),
        (ORGANIZATION + 'name_template = "{email}"\n', "organizations.0.name_template"),
        (ORGANIZATION + 'name_template = "{account_id"\n', "organizations.0.name_template"),
        (ORGANIZATION + 'name_template = "{account_id.real}"\n', "organizations.0.name_template"),
        (ORGANIZATION + 'units = ["o-1"]\n', "organizations.0.units.0"),
        (ORGANIZATION + 'exclude_accounts = ["1"]\n', "organizations.0.exclude_accounts.0"),
        (ORGANIZATION + 'role_arn = "arn:aws-cn:iam::111122223333:role/x"\n', "partition aws-cn"),
        (ORGANIZATION + "refresh = 0\n", "organizations.0.refresh"),
        ("attempts = 0\n", "attempts"),
    ],
)
def test_what_contradicts_itself_is_refused_by_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
