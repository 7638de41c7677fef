import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagetasks_sandbox.listing import answer, ask, wildcard
from imagetasks_sandbox.refusal import Refusal
from imagetasks_sandbox.tasks import Book, Task

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SCOPE = "123456789012/us-east-1"
IMAGE = "ami-0123456789abcdef0"


def task(started: datetime, ami_id: str = IMAGE, bucket: str = "archive") -> Task:
    return Task(
        ami_id=ami_id,
        bucket=bucket,
        key="",
        size_gib=8,
        started=started,
        lasts=timedelta(minutes=2),
        trouble=None,
    )


def page(book: Book, page_size: int = 200, **parameters: Any) -> tuple[list[Task], str | None]:
    return answer(ask(parameters, scope=SCOPE, page_size=page_size), book, NOON, SCOPE)


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        (
            {"ImageIds": ["i-12345678"]},
            "InvalidAMIID.Malformed",
            'Invalid id: "i-12345678" (expecting "ami-...")',
        ),
        ({"ImageIds": ["ami-xyz"]}, "InvalidAMIID.Malformed", 'Invalid id: "ami-xyz" (expecting "ami-...")'),
        ({"ImageIds": ["ami-0123456789ABCDEF0"]}, "InvalidAMIID.Malformed", "ami-0123456789ABCDEF0"),
        ({"ImageIds": [""]}, "InvalidAMIID.Malformed", 'Invalid id: ""'),
        ({"ImageIds": [IMAGE] * 21}, "InvalidParameterValue", "20"),
        ({"MaxResults": 0}, "InvalidParameterValue", "Value ( 0 ) for parameter maxResults is invalid"),
        ({"MaxResults": 201}, "InvalidParameterValue", "Value ( 201 ) for parameter maxResults is invalid"),
        ({"MaxResults": 5, "ImageIds": [IMAGE]}, "InvalidParameterCombination", "imageIds"),
        (
            {"Filters": [{"Name": "Bucket", "Values": ["x"]}]},
            "InvalidParameterValue",
            "The filter 'Bucket' is invalid",
        ),
        ({"Filters": [{"Values": ["x"]}]}, "InvalidParameterValue", "The filter 'null' is invalid"),
        ({"Filters": [{"Name": "bucket", "Values": ["x"] * 201}]}, "FilterLimitExceeded", "200"),
        ({"NextToken": "damaged"}, "InvalidPaginationToken", "not valid"),
        ({"NextToken": "Zm9v"}, "InvalidPaginationToken", "not valid"),
        ({"NextToken": "\N{SNOWMAN}"}, "InvalidPaginationToken", "not valid"),
    ],
)
def test_a_bad_question_is_refused_with_the_code_of_ec2(
    parameters: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(Refusal) as refused:
        ask(parameters, scope=SCOPE, page_size=200)
    assert refused.value.code == code
    assert message in refused.value.message
    assert refused.value.status == 400


@pytest.mark.parametrize("image_id", ["ami-01234567", "ami-0123456789abcdef0"])
def test_short_and_long_image_ids_are_well_formed(image_id: str) -> None:
    assert ask({"ImageIds": [image_id]}, scope=SCOPE, page_size=200).image_ids == (image_id,)


def test_with_image_ids_only_the_newest_task_of_each_is_listed_and_filters_do_not_count() -> None:
    book = Book()
    other = "ami-01234567"
    for minutes, ami_id, bucket in (
        (5, IMAGE, "a"),
        (4, IMAGE, "b"),
        (3, other, "a"),
        (2, "ami-76543210", "a"),
    ):
        book.add(task(NOON - timedelta(minutes=minutes), ami_id, bucket))
    listed, token = page(
        book, page_size=1, ImageIds=[IMAGE, other], Filters=[{"Name": "task-state", "Values": ["Failed"]}]
    )
    assert [(each.ami_id, each.bucket) for each in listed] == [(other, "a"), (IMAGE, "b")]
    assert token is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["a*", "ab", "B", "a"]),
        ([("bucket", ["a"])], ["a"]),
        ([("bucket", ["a", "B"])], ["B", "a"]),
        ([("bucket", ["b"])], []),
        ([("bucket", ["a?"])], ["a*", "ab"]),
        ([("bucket", ["a*"])], ["a*", "ab", "a"]),
        ([("bucket", ["a\\*"])], ["a*"]),
        ([("bucket", ["*"]), ("task-state", ["Completed"])], ["ab"]),
        ([("task-state", ["completed"])], []),
        ([("task-state", ["In*"])], ["a*", "B", "a"]),
        ([("bucket", [])], []),
    ],
)
def test_values_are_alternatives_and_filters_all_hold(
    filters: list[tuple[str, list[str]]], expected: list[str]
) -> None:
    book = Book()
    for minutes, bucket in ((4, "a"), (3, "B"), (2, "ab"), (1, "a*")):
        each = task(NOON - timedelta(minutes=minutes), bucket=bucket)
        if bucket == "ab":
            each.complete()
        book.add(each)
    listed, _ = page(book, Filters=[{"Name": name, "Values": values} for name, values in filters])
    assert [each.bucket for each in listed] == expected


@given(
    before=st.lists(st.integers(0, 50), max_size=40),
    started=st.lists(st.integers(0, 3), max_size=40),
    size=st.integers(1, 7),
)
def test_pages_hold_each_task_once_while_others_start(
    before: list[int], started: list[int], size: int
) -> None:
    book = Book()
    known = [task(NOON - timedelta(minutes=10, seconds=seconds)) for seconds in before]
    for each in known:
        book.add(each)
    walked: list[Task] = []
    token: str | None = None
    for number in (*started, *range(100)):
        listed, token = page(book, MaxResults=size, NextToken=token)
        walked += listed
        if token is None:
            break
        assert len(listed) == size
        book.add(task(NOON - timedelta(seconds=number)))
    assert token is None
    assert len(walked) == len({id(each) for each in walked}) == len(known)
    assert [each.started for each in walked] == sorted((each.started for each in known), reverse=True)


def test_a_token_is_good_in_its_own_account_and_region_only() -> None:
    book = Book()
    for minutes in (1, 2):
        book.add(task(NOON - timedelta(minutes=minutes)))
    _, token = page(book, MaxResults=1)
    with pytest.raises(Refusal, match="InvalidPaginationToken"):
        ask({"NextToken": token}, scope="123456789012/us-east-2", page_size=200)


@given(data=st.data())
def test_a_damaged_token_is_refused(data: st.DataObject) -> None:
    book = Book()
    for minutes in (1, 2):
        book.add(task(NOON - timedelta(minutes=minutes)))
    _, token = page(book, MaxResults=1)
    assert token is not None
    raw = bytearray(base64.urlsafe_b64decode(token))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refusal, match="InvalidPaginationToken"):
        ask({"NextToken": base64.urlsafe_b64encode(raw).decode()}, scope=SCOPE, page_size=200)


def matches(pattern: str, text: str) -> bool:
    """EC2's patterns by their definition, without regular expressions."""
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == "*":
        return any(matches(rest, text[index:]) for index in range(len(text) + 1))
    if head == "\\" and rest:
        head, rest = rest[0], rest[1:]
        return text[:1] == head and matches(rest, text[1:])
    return bool(text) and (head in ("?", text[0])) and matches(rest, text[1:])


@given(st.text("ab*?\\.\n", max_size=7), st.text("ab*?\\.\n", max_size=7))
def test_wildcards_match_by_their_definition(pattern: str, text: str) -> None:
    assert (wildcard(pattern).fullmatch(text) is not None) == matches(pattern, text)
