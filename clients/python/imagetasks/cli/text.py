"""What is printed: errors as one line, values from elsewhere made safe, messages as JSON."""

import json
import re

from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from imagetasks.errors import Error, UnauthenticatedError, UnavailableError, from_status
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watching import Place, Stale

_HINTS = {
    "CREDENTIAL_MISSING": "send one with --token-file, IMAGETASKS_TOKEN, or --client-certificate and "
    "--client-key",
    "CREDENTIAL_INVALID": "is it this gateway's, and still permitted? It comes from --token-file, else "
    "IMAGETASKS_TOKEN, else --client-certificate",
    "CREDENTIAL_EXPIRED": "get a new one, and put it where --token-file or IMAGETASKS_TOKEN has it",
}


def printable(text: str) -> str:
    """The text with control characters escaped: a bucket's key must not move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def explain(error: Error, endpoint: str) -> str:
    """A failed call in one line: what happened, where, and what helps."""
    # grpc-core: "failed to connect to all addresses; last error: UNKNOWN: ipv4:…: Connection refused"
    unconnected = re.search(r"last error: (?:[A-Z_]+: )?(.*)|.*\bresol.*", error.message, re.DOTALL)
    if isinstance(error, UnavailableError) and not error.reason and unconnected:
        return printable(
            f"no gateway answers at {endpoint} ({unconnected[1] or unconnected[0]}); start one with "
            "imagetasks-server (--sandbox: without AWS), or name another with --endpoint-url or "
            "IMAGETASKS_ENDPOINT",
        )
    facts = [f"{error.code.name} {error.reason}".strip()]
    if error.account or error.region:
        facts.append(" ".join(part for part in (error.account, error.region) if part))
    if error.aws_error_code:
        facts.append(f"AWS: {error.aws_error_code}")
    if error.aws_request_id:
        facts.append(f"request id {error.aws_request_id}")
    if error.retry_after is not None:
        facts.append(f"ask again in {error.retry_after.total_seconds():.3g} s")
    sentences = [error.message or "the gateway gave no text"]
    sentences += [
        f"{violation.field}: {violation.description}"
        for violation in error.field_violations
        if violation.description not in error.message
    ]
    sentences += [
        f"{failure.account} {failure.region}: {failure.reason}".strip() for failure in error.target_failures
    ]
    if error.omitted_target_failures:
        sentences.append(f"and {error.omitted_target_failures} more")
    if isinstance(error, UnauthenticatedError):
        sentences.append(_HINTS.get(error.reason, _HINTS["CREDENTIAL_MISSING"]))
    return printable(f"{'; '.join(sentences)} ({', '.join(facts)})")


def explain_status(status: Status) -> str:
    """Why a target failed or is stale, short: the reason and the gateway's text."""
    error = from_status(status)
    return printable(f"{error.reason or error.code.name}: {error.message}")


def target_name(target: pb.Target) -> str:
    """The target as "account/region"; of a whole account only the account."""
    return printable("/".join(part for part in (target.account, target.region) if part))


def place_name(place: Place) -> str:
    """As `target_name`, of an account and a Region."""
    return printable("/".join(filter(None, place)))


def explain_stale(stale: Stale) -> str:
    """That a target cannot be read, since when, and why."""
    name, why = target_name(stale.target), printable(str(stale.error))
    if stale.read_time is None:
        return f"{name} cannot be read: {why}"
    read = Timestamp()
    read.FromNanoseconds(round(stale.read_time * 1e9))
    return f"{name} is stale, last read {instant(read)}: {why}"


def instant(time: Timestamp) -> str:
    """The time to the second, as "2026-01-31T23:59:59Z"."""
    return f"{time.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"


def to_json(message: Message, *, indent: int | None = None) -> str:
    """The message in protobuf's JSON mapping: lowerCamelCase names, times as RFC 3339 in UTC.

    Absent members are left out; numbers and lists that cannot be absent are printed also when zero or empty.
    """
    return json.dumps(to_dict(message), ensure_ascii=False, indent=indent)


def to_dict(message: Message) -> dict[str, object]:
    """As `to_json`, before it is written as text."""
    converted: dict[str, object]
    try:
        converted = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    except TypeError:
        # A newer gateway's error detail of a kind that this client was not built with.
        plain = type(message)()
        plain.CopyFrom(message)
        _drop_unknown_details(plain)
        converted = json_format.MessageToDict(plain, always_print_fields_with_no_presence=True)
    return converted


def _drop_unknown_details(message: Message) -> None:
    if isinstance(message, Status):
        known = [detail for detail in message.details if _is_known(detail.TypeName())]
        del message.details[:]
        message.details.extend(known)
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else (value,):
            _drop_unknown_details(inner)


def _is_known(name: str) -> bool:
    try:
        descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return False
    return True
