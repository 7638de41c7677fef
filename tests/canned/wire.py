"""The query protocol: a form in, XML out. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from canned.world import MEMBERS, Refusal, Task

NAMESPACES = {
    "ec2": "http://ec2.amazonaws.com/doc/2016-11-15/",
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
}
# The same in every answer, so that an answer's bytes depend on the world alone.
REQUEST_ID = "00000000-0000-0000-0000-000000000000"


def parameters(form: Mapping[str, str]) -> dict[str, Any]:
    """DescribeStoreImageTasks' parameters from the form, by their names in EC2's model."""
    given: dict[str, Any] = {}
    if image_ids := _items(form, "ImageId"):
        given["ImageIds"] = image_ids
    filters: list[dict[str, Any]] = []
    while names := [name for name in form if name.startswith(f"Filter.{len(filters) + 1}.")]:
        prefix = f"Filter.{len(filters) + 1}"
        one: dict[str, Any] = {"Values": _items(form, f"{prefix}.Value")}
        if f"{prefix}.Name" in names:
            one["Name"] = form[f"{prefix}.Name"]
        filters.append(one)
    if filters:
        given["Filters"] = filters
    if "MaxResults" in form:
        given["MaxResults"] = int(form["MaxResults"])
    if "NextToken" in form:
        given["NextToken"] = form["NextToken"]
    given["DryRun"] = form.get("DryRun") == "true"
    return given


def tasks(page: Sequence[Task], next_token: str | None) -> str:
    """The answer to DescribeStoreImageTasks."""
    items = "".join(f"<item>{_task(task)}</item>" for task in page)
    results = f"<storeImageTaskResultSet>{items}</storeImageTaskResultSet>"
    return _response(
        "DescribeStoreImageTasks", results + (_element("nextToken", next_token) if next_token else "")
    )


def regions(names: Sequence[str]) -> str:
    """The answer to DescribeRegions."""
    items = "".join(
        f"<item>{_element('regionName', name)}{_element('regionEndpoint', f'ec2.{name}.amazonaws.com')}"
        f"{_element('optInStatus', 'opt-in-not-required')}</item>"
        for name in names
    )
    return _response("DescribeRegions", f"<regionInfo>{items}</regionInfo>")


def refusal(refused: Refusal) -> str:
    """EC2's error."""
    fault = _element("Code", refused.code) + _element("Message", refused.message)
    return f"<Response><Errors><Error>{fault}</Error></Errors><RequestID>{REQUEST_ID}</RequestID></Response>"


def identity(account: str) -> str:
    """The answer to GetCallerIdentity."""
    arn = f"arn:aws:sts::{account}:assumed-role/canned/canned"
    return _sts("GetCallerIdentity", _elements({"Arn": arn, "UserId": "CANNED", "Account": account}))


def role(account: str, access_key: str) -> str:
    """The answer to AssumeRole."""
    credentials = {
        "AccessKeyId": access_key,
        "SecretAccessKey": "canned",
        "SessionToken": "canned",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    user = {"Arn": f"arn:aws:sts::{account}:assumed-role/canned/canned", "AssumedRoleId": "CANNED:canned"}
    return _sts(
        "AssumeRole",
        f"<Credentials>{_elements(credentials)}</Credentials><AssumedRoleUser>{_elements(user)}</AssumedRoleUser>",
    )


def _items(form: Mapping[str, str], prefix: str) -> list[str]:
    items: list[str] = []
    while (name := f"{prefix}.{len(items) + 1}") in form:
        items.append(form[name])
    return items


def _task(task: Task) -> str:
    return "".join(
        _element(member[0].lower() + member[1:], str(task[member])) for member in MEMBERS if member in task
    )


def _response(action: str, content: str) -> str:
    return (
        f'<{action}Response xmlns="{NAMESPACES["ec2"]}"><requestId>{REQUEST_ID}</requestId>{content}'
        f"</{action}Response>"
    )


def _sts(action: str, content: str) -> str:
    return (
        f'<{action}Response xmlns="{NAMESPACES["sts"]}"><{action}Result>{content}</{action}Result>'
        f"<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata></{action}Response>"
    )


def _elements(values: Mapping[str, str]) -> str:
    return "".join(_element(name, value) for name, value in values.items())


def _element(name: str, value: str) -> str:
    return f"<{name}>{escape(value)}</{name}>" if value else f"<{name}/>"
