"""The doctor: what it sees, what it says mends it, and what it exits with."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from fake_ec2 import aws_error
from scripted_aws import ACCOUNT, ScriptedAws

from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.checks import Check, fix_of
from imagetasks_server.checks_account import check_account
from imagetasks_server.checks_target import check_target
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.doctor import Report, examine
from imagetasks_server.errors import Error, PermissionDenied
from imagetasks_server.targets import Identity

NOW = datetime(2026, 1, 31, tzinfo=UTC)
AMI = "ami-1234567890abcdef0"

# From what was asked and its answer, another answer.
Bend: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], Any]


def task(minutes: int, ami: str = AMI, state: str = "Completed", **members: Any) -> dict[str, Any]:
    return {
        "AmiId": ami,
        "TaskStartTime": NOW - timedelta(minutes=minutes),
        "Bucket": "archive",
        "S3objectKey": f"{ami}.bin",
        "StoreTaskState": state,
        **members,
    }


class Patient:
    """An account that answers as EC2 does, unless a test says otherwise."""

    home_region = "us-east-1"

    def __init__(self) -> None:
        self.who: Identity | Error = Identity("aws", ACCOUNT)
        self.regions: list[str] | Error = ["eu-central-1", "us-east-1"]
        self.date: str | None = format_datetime(datetime.now(UTC))
        self.tasks = [task(1, state="InProgress"), task(2), task(3, ami="ami-0fedcba0987654321")]
        self.quotas: list[dict[str, Any]] | Error = []
        self.bend: Bend = lambda _, answer: answer
        self.calls: Counter[str] = Counter()

    async def identity(self) -> Identity:
        self.calls["identity"] += 1
        if isinstance(self.who, Error):
            raise self.who
        return self.who

    async def ask(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        self.calls[operation] += 1
        if operation == "describe_regions":
            if isinstance(self.regions, Error):
                raise self.regions
            headers = {"date": self.date} if self.date else {}
            return {
                "Regions": [{"RegionName": each} for each in self.regions],
                "ResponseMetadata": {"HTTPHeaders": headers},
            }
        if operation == "list_service_quotas":
            assert (service, region) == ("service-quotas", "us-east-1")
            if isinstance(self.quotas, Error):
                raise self.quotas
            number = int(parameters.get("NextToken", 0))
            more = {"NextToken": str(number + 1)} if number + 1 < len(self.quotas) else {}
            return {"Quotas": self.quotas[number : number + 1], **more}
        return self.bend(parameters, self._tasks(parameters))

    def _tasks(self, parameters: dict[str, Any]) -> Any:
        if parameters.get("DryRun"):
            return aws_error("DryRunOperation", status=412)
        ids, size = parameters.get("ImageIds"), parameters.get("MaxResults")
        if ids and size:
            return aws_error("InvalidParameterCombination")
        found = [each for each in self.tasks if each["AmiId"] in ids][:1] if ids else self.tasks[:size]
        more = {"NextToken": "t"} if size and len(self.tasks) > size else {}
        return {"StoreImageTaskResults": found, **more}


class _Raising(Patient):
    """As a patient; an answer that is an error is raised."""

    async def ask(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        answer = await super().ask(service, region, operation, **parameters)
        if isinstance(answer, Error):
            raise answer
        return answer


@pytest.fixture
def patient() -> Patient:
    return _Raising()


async def of_target(patient: Patient) -> dict[str, Check]:
    checks = await check_target(patient, "main", "eu-central-1")
    assert all((each.account, each.region) == ("main", "eu-central-1") for each in checks)
    assert all(bool(each.fix) == (each.status in {"warn", "fail"}) for each in checks)
    return {each.name: each for each in checks}


async def of_account(patient: Patient, **keys: Any) -> tuple[dict[str, Check], list[str]]:
    settings = AccountSettings(**{"name": "main", **keys})
    checks, regions = await check_account(patient, settings, ask_quotas=True)
    assert all((each.account, each.region) == ("main", "") for each in checks)
    assert all(bool(each.fix) == (each.status in {"warn", "fail"}) for each in checks)
    return {each.name: each for each in checks}, regions


def statuses(checks: dict[str, Check]) -> dict[str, str]:
    return {name: each.status for name, each in checks.items()}


# A target.


async def test_a_sound_target_is_seen_so_with_five_calls(patient: Patient) -> None:
    assert statuses(await of_target(patient)) == {
        "permission": "ok",
        "page size": "ok",
        "order": "ok",
        "finished tasks": "ok",
        "ids": "ok",
        "ids with MaxResults": "ok",
    }
    assert patient.calls == {"describe_store_image_tasks": 5}


async def test_an_empty_target_leaves_open_what_it_cannot_show(patient: Patient) -> None:
    patient.tasks = []
    found = await of_target(patient)
    assert statuses(found) == {
        "permission": "ok",
        "page size": "ok",
        "order": "skip",
        "finished tasks": "skip",
        "ids": "skip",
        "ids with MaxResults": "skip",
    }
    assert patient.calls.total() == 3


async def test_a_refused_target_is_asked_no_more(patient: Patient) -> None:
    patient.bend = lambda _, __: aws_error("UnauthorizedOperation", "You are not authorized.", status=403)
    found = await of_target(patient)
    assert statuses(found) == {"permission": "fail"}
    assert "ec2:DescribeStoreImageTasks" in found["permission"].fix
    assert "exclude_regions" in found["permission"].fix
    assert patient.calls.total() == 1


def bent(parameters: dict[str, Any], answer: Any, *, size: int, tasks: list[dict[str, Any]]) -> Any:
    return {"StoreImageTaskResults": tasks} if parameters == {"MaxResults": size} else answer


@pytest.mark.parametrize(
    ("name", "size", "tasks"),
    [
        ("order", 200, [task(3), task(2), task(1)]),
        ("finished tasks", 200, [task(1, state="InProgress"), task(2, state="Failed")]),
        ("page size", 5, [task(each) for each in range(6)]),
        ("page size", 5, [task(1)]),  # and no token, though there is more
    ],
)
async def test_a_habit_that_ec2_has_dropped_is_seen(
    patient: Patient, name: str, size: int, tasks: list[dict[str, Any]]
) -> None:
    patient.bend = lambda parameters, answer: bent(parameters, answer, size=size, tasks=tasks)
    found = await of_target(patient)
    assert found[name].status == "fail"
    assert "Report it" in found[name].fix


async def test_an_ids_other_tasks_are_seen(patient: Patient) -> None:
    patient.bend = lambda parameters, answer: (
        {"StoreImageTaskResults": patient.tasks[:2]} if set(parameters) == {"ImageIds"} else answer
    )
    assert (await of_target(patient))["ids"].status == "fail"


async def test_ids_that_are_taken_with_a_page_size_are_a_warning(patient: Patient) -> None:
    patient.bend = lambda parameters, answer: {"StoreImageTaskResults": []} if len(parameters) > 1 else answer
    assert (await of_target(patient))["ids with MaxResults"].status == "warn"


async def test_a_read_that_fails_after_the_dry_run_is_told(patient: Patient) -> None:
    patient.bend = lambda parameters, answer: (
        answer if "DryRun" in parameters else aws_error("RequestLimitExceeded", status=503)
    )
    found = await of_target(patient)
    assert statuses(found) == {"permission": "ok", "tasks": "fail"}
    assert "budget.reserve" in found["tasks"].fix


# An account.


async def test_a_sound_account_is_seen_so(patient: Patient) -> None:
    patient.quotas = [
        {"QuotaName": "Running instances", "Value": 5},
        {"QuotaName": "DescribeStoreImageTasks bucket", "Value": 50},
    ]
    found, regions = await of_account(patient)
    assert set(statuses(found).values()) == {"ok"}
    assert list(found) == ["credentials", "identity", "regions", "clock", "quota"]
    assert ACCOUNT in found["identity"].seen
    assert "DescribeStoreImageTasks bucket: 50" in found["quota"].seen
    assert "instances" not in found["quota"].seen
    assert regions == ["eu-central-1", "us-east-1"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (aws_error("InvalidClientTokenId", credentials_proven=False), "Renew the credentials"),
        (aws_error("AccessDenied", operation="AssumeRole"), "external_id"),
        (aws_error("ExpiredToken"), "clock"),
        (aws_error("Unheard"), "error code"),
    ],
)
async def test_credentials_that_do_not_work_end_it_with_what_mends_them(
    patient: Patient, error: Error, says: str
) -> None:
    patient.who = error
    found, regions = await of_account(patient)
    assert statuses(found) == {"credentials": "fail"}
    assert says in found["credentials"].fix
    assert (regions, patient.calls.total()) == ([], 1)


async def test_another_partition_is_seen(patient: Patient) -> None:
    patient.who = Identity("aws-us-gov", ACCOUNT)
    found, _ = await of_account(patient)
    assert 'partition = "aws-us-gov"' in found["identity"].fix


async def test_configured_regions_are_held_against_the_enabled_ones(patient: Patient) -> None:
    found, regions = await of_account(patient, regions=["us-east-1", "eu-south-1"])
    assert found["regions"].status == "fail"
    assert "not enabled: eu-south-1" in found["regions"].seen
    assert regions == ["eu-south-1", "us-east-1"]


async def test_excluded_regions_are_no_targets_and_no_failure(patient: Patient) -> None:
    found, regions = await of_account(patient, exclude_regions=["us-east-1"])
    assert found["regions"].status == "ok"
    assert "excluded: us-east-1" in found["regions"].seen
    assert regions == ["eu-central-1"]


async def test_regions_that_cannot_be_asked_fail_unless_they_are_configured(patient: Patient) -> None:
    patient.regions = aws_error("UnauthorizedOperation", status=403, operation="DescribeRegions")
    found, regions = await of_account(patient)
    assert (found["regions"].status, regions) == ("fail", [])
    assert "ec2:DescribeRegions" in found["regions"].fix
    found, regions = await of_account(patient, regions=["eu-west-1"])
    assert (found["regions"].status, regions) == ("warn", ["eu-west-1"])


@pytest.mark.parametrize(
    ("seconds", "status"), [(0, "ok"), (60, "warn"), (-60, "warn"), (280, "fail"), (-280, "fail")]
)
async def test_a_clock_that_is_off_is_seen(patient: Patient, seconds: float, status: str) -> None:
    patient.date = format_datetime(datetime.now(UTC) - timedelta(seconds=seconds))
    found, _ = await of_account(patient)
    assert found["clock"].status == status
    assert seconds == 0 or ("ahead" if seconds > 0 else "behind") in found["clock"].seen


async def test_an_answer_without_a_date_tells_nothing_of_the_clock(patient: Patient) -> None:
    patient.date = None
    found, _ = await of_account(patient)
    assert found["clock"].status == "skip"


async def test_quotas_that_cannot_be_asked_or_are_not_listed_stop_nothing(patient: Patient) -> None:
    patient.quotas = aws_error("AccessDeniedException", "<html>\n\nno   way</html>")
    found, regions = await of_account(patient)
    assert found["quota"].status == "warn"
    assert "servicequotas:ListServiceQuotas" in found["quota"].fix
    assert "\n" not in found["quota"].seen
    assert regions
    patient.quotas = [{"QuotaName": f"other {number}", "Value": 1} for number in range(9)]
    found, _ = await of_account(patient)
    assert found["quota"].status == "skip"
    assert patient.calls["list_service_quotas"] == 1 + 5


def test_every_error_of_aws_has_a_fix() -> None:
    assert "service control policy" in fix_of(PermissionDenied("AWS_UNAUTHORIZED_OPERATION", "no (X)"))


# The report.


REPORT = Report(
    [
        Check("credentials", "main", "", "ok", "found"),
        Check("permission", "main", "eu-central-1", "ok", "may"),
        Check("order", "main", "eu-central-1", "ok", "newest first"),
        Check("ids", "main", "eu-central-1", "skip", "not checked: none"),
        Check("permission", "main", "sa-east-1", "fail", "no", "Allow it"),
    ],
    {"ec2:DescribeRegions": 1},
)


def test_the_text_has_a_line_for_what_is_well_and_one_for_each_thing_that_is_not() -> None:
    assert REPORT.text() == (
        "ok    main               credentials: found\n"
        "ok    main eu-central-1  permission, order\n"
        "skip  main eu-central-1  ids\n"
        "fail  main sa-east-1     permission: no\n"
        "                         fix: Allow it\n"
        "3 ok, 1 not checked, 0 warnings, 1 failures. Calls to AWS: 1 ec2:DescribeRegions.\n"
    )


def test_json_has_everything() -> None:
    report = json.loads(REPORT.json())
    assert report["checks"][4] == {
        "name": "permission",
        "account": "main",
        "region": "sa-east-1",
        "status": "fail",
        "seen": "no",
        "fix": "Allow it",
    }
    assert report["calls"] == {"ec2:DescribeRegions": 1}


def test_only_a_failure_fails() -> None:
    assert REPORT.exit_status == 1
    assert Report([Check("quota", "main", "", "warn", "", "x")], {}).exit_status == 0


# All of it.


async def test_each_call_is_counted_retries_too_and_accounts_and_regions_can_be_chosen(
    aws: ScriptedAws,
) -> None:
    settings = Settings(accounts=[{"name": "a"}, {"name": "b"}], attempts=1)
    report = await examine(settings, ["a"], ["eu-central-1"], ask_quotas=False)
    assert {each.account for each in report.checks} == {"a"}
    assert {each.region for each in report.checks} == {"", "eu-central-1"}
    # The dry run is answered with a result here.
    assert report.exit_status == 0
    assert report.calls == dict(sorted(Counter(_named(each.action) for each in aws.requests).items()))
    assert report.calls == {
        "ec2:DescribeRegions": 1,
        "ec2:DescribeStoreImageTasks": 3,
        "sts:GetCallerIdentity": 1,
    }


def _named(action: str) -> str:
    return f"sts:{action}" if action == "GetCallerIdentity" else f"ec2:{action}"


@pytest.mark.parametrize(("accounts", "regions"), [(["c"], []), ([], ["eu-west-9"])])
async def test_what_does_not_exist_is_refused(
    aws: ScriptedAws, accounts: list[str], regions: list[str]
) -> None:
    with pytest.raises(ConfigError):
        await examine(Settings(), accounts, regions, ask_quotas=False)
    assert aws.requests or accounts


async def test_an_organization_is_listed_and_its_accounts_looked_at(aws: ScriptedAws) -> None:
    organization = OrganizationSettings(name="company", role_name="imagetasks")
    settings = Settings(organizations=[organization], attempts=1)
    aws.pages["ListAccounts", ""] = [[{"Id": "111122223333", "Name": "dev", "Status": "ACTIVE"}]]
    report = await examine(settings, [], ["us-east-1"], ask_quotas=False)
    assert {(each.account, each.region) for each in report.checks} == {
        ("company", ""),
        ("dev", ""),
        ("dev", "us-east-1"),
    }
    assert report.calls["organizations:ListAccounts"] == 1
    aws.refuse("ListAccounts", "AccessDeniedException")
    report = await examine(settings, [], [], ask_quotas=False)
    (check,) = report.checks
    assert (check.account, check.status) == ("company", "fail")
    assert "organizations:ListAccounts" in check.fix


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imagetasks_server", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_on_the_sandbox_the_denied_region_fails_and_all_others_are_sound() -> None:
    done = doctor("doctor", "--sandbox", "--account", "images-dev", "--output", "json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    not_ok = [each for each in report["checks"] if each["status"] not in {"ok", "skip"}]
    (denied,) = not_ok
    assert (denied["region"], denied["name"]) == ("sa-east-1", "permission")
    assert "exclude_regions" in denied["fix"]
    assert len({each["region"] for each in report["checks"]}) == 14  # thirteen, and the account
    assert max(report["calls"].values()) <= 5 * 12 + 1
    assert done.stderr == ""


def test_the_sandbox_may_be_asked_for_before_the_command_too() -> None:
    done = doctor("--sandbox", "doctor", "--account", "main", "--region", "eu-west-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fail" not in done.stdout.splitlines()[0]
    assert "Calls to AWS: 1 ec2:DescribeRegions, 5 ec2:DescribeStoreImageTasks" in done.stdout


def test_where_the_gateway_may_listen_is_no_matter_of_its() -> None:
    """In the image the address is one that others can reach, and an --insecure is the gateway's own."""
    of_the_image = {"IMAGETASKS_LISTEN": "0.0.0.0:50051"}
    done = doctor("doctor", "--sandbox", "--account", "main", "--region", "eu-west-1", **of_the_image)
    assert (done.returncode, done.stderr) == (0, "")
    assert doctor("--check-config", **of_the_image).returncode == 2


def test_a_configuration_that_cannot_be_used_is_2(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[[accounts]]\nname = "a"\nrol = "x"\n')
    for arguments in (["doctor", "--config", str(config)], ["--config", str(config), "doctor"]):
        done = doctor(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "accounts.0.rol" in done.stderr
