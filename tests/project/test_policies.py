"""The policies that are handed out: they parse, agree with each other, and name what is called, no more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from imagetasks_server.aws_models import DOCTOR_ACTIONS, LIST_ACTIONS, OPERATIONS, READ_ACTIONS
from processes import ROOT

POLICIES = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "deploy/iam").glob("*.json")}
DOCUMENT = ROOT / "docs/accounts.md"
TEMPLATE = ROOT / "deploy/account-role.stackset.yaml"

# IAM's word for a service where it is not botocore's.
PREFIXES = {"service-quotas": "servicequotas"}
NEEDS_NO_PERMISSION = {"sts:GetCallerIdentity"}


def called() -> set[str]:
    return {
        f"{PREFIXES.get(service, service)}:{operation}"
        for service, operations in OPERATIONS.items()
        for operation in operations
    }


def actions(policy: Any) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def test_the_policies_name_what_the_code_calls_and_no_more() -> None:
    allowed = set().union(*(actions(policy) for policy in POLICIES.values()))
    assert allowed == called() - NEEDS_NO_PERMISSION


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gateway", {"sts:AssumeRole", *READ_ACTIONS}),
        ("account-role", set(READ_ACTIONS)),
        ("account-role-trust", {"sts:AssumeRole"}),
        ("organizations", set(LIST_ACTIONS)),
        ("doctor", set(DOCTOR_ACTIONS) - set(READ_ACTIONS)),
    ],
)
def test_each_policy_is_for_one_thing(name: str, expected: set[str]) -> None:
    policy = POLICIES[name]
    assert policy["Version"] == "2012-10-17"
    assert actions(policy) == expected
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert re.fullmatch(r"[A-Za-z0-9]+", statement["Sid"])


def test_every_policy_is_tested() -> None:
    assert set(POLICIES) == {"gateway", "account-role", "account-role-trust", "organizations", "doctor"}


def test_the_session_policies_are_of_what_is_called() -> None:
    assert set(DOCTOR_ACTIONS) | set(LIST_ACTIONS) | {"sts:AssumeRole"} == called() - NEEDS_NO_PERMISSION


def test_the_code_calls_no_other_operations() -> None:
    """A client has only the operations of the slim models; what is called by name must be one of them."""
    known = {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower()
        for operations in OPERATIONS.values()
        for operation in operations
    }
    sources = [path.read_text("utf-8") for path in (ROOT / "server/imagetasks_server").glob("*.py")]
    used = {name for name in known if any(re.search(rf"\b{name}\b", source) for source in sources)}
    assert used == known


def test_the_document_shows_the_policies_as_they_are() -> None:
    shown = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    files = [path.read_text("utf-8") for path in (ROOT / "deploy/iam").glob("*.json")]
    assert sorted(shown) == sorted(files)


def test_the_document_explains_every_key() -> None:
    from imagetasks_server.account_settings import AccountSettings, OrganizationSettings  # noqa: PLC0415

    explained = {
        key
        for line in DOCUMENT.read_text("utf-8").splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert explained >= set(AccountSettings.model_fields)
    assert explained >= set(OrganizationSettings.model_fields)


def test_the_documents_configuration_can_be_used(tmp_path: Path) -> None:
    from imagetasks_server.config import load  # noqa: PLC0415

    blocks = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, "utf-8")
        assert load(str(path))


def test_cloudformation_takes_the_template() -> None:
    cfnlint = pytest.importorskip("cfnlint.api")
    assert cfnlint.lint_file(TEMPLATE) == []


def test_the_template_makes_the_role_of_the_policies_in_any_partition() -> None:
    decode = pytest.importorskip("cfnlint.decode")
    template, faults = decode.decode(str(TEMPLATE))
    assert not faults
    role = template["Resources"]["Role"]["Properties"]
    reading, doctoring = role["Policies"][0]["PolicyDocument"]["Statement"]
    assert reading == POLICIES["account-role"]["Statement"][0]
    assert doctoring["Fn::If"][1] == POLICIES["doctor"]["Statement"][0]
    trust, shown = role["AssumeRolePolicyDocument"], POLICIES["account-role-trust"]
    assert actions(trust) == actions(shown)
    assert [each["Sid"] for each in trust["Statement"]] == [each["Sid"] for each in shown["Statement"]]
    assert "sts:ExternalId" in trust["Statement"][0]["Condition"]["StringEquals"]
    assert "${AWS::Partition}" in template["Outputs"]["RoleArn"]["Value"]["Fn::Sub"]
    assert "arn:aws:" not in json.dumps(template["Resources"])
