"""Botocore's models of services, without what nobody here calls; and what the gateway may call at all.

As they come, a client builds a class with a method for each of EC2's 700 operations.
"""

import contextlib
import functools
import gzip
import json
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, Final

from aiobotocore.session import AioSession
from botocore.handlers import BUILTIN_HANDLERS, REGISTER_FIRST, REGISTER_LAST
from botocore.loaders import JSONFileLoader, Loader
from botocore.utils import parse_timestamp

# All that is asked of AWS. docs/accounts.md and the policies in deploy/iam name exactly these.
OPERATIONS: Final = {
    "ec2": ("DescribeStoreImageTasks", "DescribeRegions"),
    "sts": ("GetCallerIdentity", "AssumeRole"),
    "organizations": ("ListAccounts", "ListAccountsForParent", "ListOrganizationalUnitsForParent"),
    "service-quotas": ("ListServiceQuotas",),
}

# IAM's actions, by what they serve. GetCallerIdentity needs no permission.
READ_ACTIONS: Final = ("ec2:DescribeRegions", "ec2:DescribeStoreImageTasks")
LIST_ACTIONS: Final = (
    "organizations:ListAccounts",
    "organizations:ListAccountsForParent",
    "organizations:ListOrganizationalUnitsForParent",
)
DOCTOR_ACTIONS: Final = (*READ_ACTIONS, "servicequotas:ListServiceQuotas")


class SlimLoader(Loader):  # type: ignore[misc]  # botocore is untyped
    """Botocore's loader of its data, which keeps of each file only what is needed here."""

    def __init__(self) -> None:
        super().__init__(file_loader=_SlimFiles())

    def list_available_services(self, _type_name: str) -> list[str]:
        """All there are, without a look at what there is of each: botocore takes 10 ms for that."""
        return sorted({path.name for place in self.search_paths for path in Path(place).glob("*/")})


@functools.cache
def loader() -> SlimLoader:
    """The one loader of the process: what is read once serves all sessions."""
    return SlimLoader()


def preload() -> None:
    """Read what every gateway needs. Blocks.

    On the main thread, so that its memory is used again: what another thread has used and given back, only
    that thread uses again.
    """
    for service in ("ec2", "sts"):
        loader().load_service_model(service, "service-2")
    for name in ("endpoints", "partitions"):
        loader().load_data(name)


class _SlimFiles(JSONFileLoader):  # type: ignore[misc]
    """Reads botocore's files. Plain dicts keep their order too, and are there in a third of the time."""

    def load_file(self, file_path: str) -> Any:
        """What is needed of a file, named without its suffix; None: there is no such file."""
        for suffix, open_file in ((".json", open), (".json.gz", gzip.open)):
            with contextlib.suppress(FileNotFoundError), open_file(file_path + suffix, "rb") as file:
                # What is kept lies scattered over what goes, and would hold its memory: hence written anew.
                return json.loads(_needed(PurePath(file_path), file.read()))
        return None


def _needed(path: PurePath, text: bytes) -> bytes:
    if path.name != "service-2" or (operations := OPERATIONS.get(path.parts[-3])) is None:
        return text
    return json.dumps(_slim(json.loads(text), operations)).encode()


def _slim(model: dict[str, Any], operations: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: model["operations"][name] for name in operations}
    shapes: dict[str, Any] = {}
    todo = [
        part["shape"]
        for operation in kept.values()
        for part in (operation.get("input"), operation.get("output"), *operation.get("errors", ()))
        if part
    ]
    while todo:
        name = todo.pop()
        if name in shapes:
            continue
        shape = shapes[name] = model["shapes"][name]
        inner = (*shape.get("members", {}).values(), *(shape.get(k) for k in ("member", "key", "value")))
        todo.extend(part["shape"] for part in inner if part)
    return {**model, "operations": kept, "shapes": shapes}


def slim_session() -> Any:
    """Botocore's session, without what it does for services that nobody here calls.

    Each client copies all of that: it would be half of what a client weighs.
    """
    session = AioSession(include_builtin_handlers=False)
    events = session.get_component("event_emitter")
    register = {REGISTER_FIRST: events.register_first, REGISTER_LAST: events.register_last}
    for event, handler, *place in BUILTIN_HANDLERS:
        what, _, of = event.partition(".")
        if what != "docs" and (not of or of.split(".")[0] in {*OPERATIONS, "*"}):
            register.get(place[0] if place else None, events.register)(event, handler)
    return session


def parse_time(value: str | float) -> datetime:
    """A timestamp of AWS, by the standard library where that can; dateutil takes twenty times as long.

    JSON services send seconds.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
    return parse_timestamp(value)  # type: ignore[no-any-return]
