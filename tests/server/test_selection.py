"""EC2's rules of choosing, held against plain reference implementations; tokens against damage."""

import base64
import functools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.errors import InvalidRequest
from imagetasks_server.selection import MAX_VERDICTS, describe_selection, order_of, selector_selection
from imagetasks_server.tokens import PageToken

SMALL = st.text(alphabet="ab*?\\.\n", max_size=8)


def matches(pattern: str, text: str) -> bool:
    """EC2's wildcards, the slow and obvious way."""

    @functools.cache
    def at(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(text)
        if pattern[i] == "*":
            return at(i + 1, j) or (j < len(text) and at(i, j + 1))
        literal, step = pattern[i], 1
        if literal == "\\" and i + 1 < len(pattern):
            literal, step = pattern[i + 1], 2
        elif literal == "?":
            return j < len(text) and at(i + 1, j + 1)
        return j < len(text) and text[j] == literal and at(i + step, j + 1)

    return at(0, 0)


def bucket_filter(*values: str) -> pb.Filter:
    return pb.Filter(name="bucket", values=values)


@given(SMALL, st.text(alphabet="ab*?\\.\n", max_size=10))
def test_wildcards_match_as_the_obvious_way_says(pattern: str, text: str) -> None:
    selection = describe_selection([], [bucket_filter(pattern)])
    assert selection.matches(pb.StoreImageTaskResult(bucket=text)) == matches(pattern, text)


def test_a_pattern_full_of_stars_is_matched_at_once() -> None:
    selection = describe_selection([], [bucket_filter("*a" * 120 + "b")])
    began = time.process_time()
    assert not selection.matches(pb.StoreImageTaskResult(bucket="a" * 250))
    # Backtracking would take longer than the universe has; this is no measurement.
    assert time.process_time() - began < 5


@given(
    st.lists(st.sampled_from(["InProgress", "Completed", "Failed", "nonsense", "inprogress"]), min_size=1),
    st.lists(st.sampled_from(["a", "b", "a*"]), min_size=1),
    st.sampled_from(["InProgress", "Completed", "Failed", None]),
    st.sampled_from(["a", "b", "ab", None]),
)
def test_values_are_joined_with_or_and_filters_with_and(
    states: list[str], buckets: list[str], state: str | None, bucket: str | None
) -> None:
    task = pb.StoreImageTaskResult(ec2_store_task_state=state, bucket=bucket)
    selection = describe_selection([], [pb.Filter(name="task-state", values=states), bucket_filter(*buckets)])
    expected = state in states and bucket is not None and any(matches(b, bucket) for b in buckets)
    assert selection.matches(task) == expected


def test_with_image_ids_describe_ignores_filters_and_a_selector_does_not() -> None:
    task = pb.StoreImageTaskResult(ami_id="ami-00000001", bucket="x")
    assert describe_selection(["ami-00000001"], [bucket_filter("y")]).matches(task)
    selector = pb.TaskSelector(image_ids=["ami-00000001"], filters=[bucket_filter("y")])
    assert not selector_selection(selector).matches(task)


@pytest.mark.parametrize(
    ("image_ids", "filters", "field", "reason"),
    [
        (["ami-0"], [], "image_ids[0]", "IMAGE_ID_MALFORMED"),
        (["ami-00000001", "AMI-00000001"], [], "image_ids[1]", "IMAGE_ID_MALFORMED"),
        (["ami-00000001\n"], [], "image_ids[0]", "IMAGE_ID_MALFORMED"),
        (["i-00000001"], [], "image_ids[0]", "IMAGE_ID_MALFORMED"),
        (["ami-00000001"] * 21, [], "image_ids", "INVALID_FIELD"),
        ([], [pb.Filter(name="state", values=["x"])], "filters[0].name", "INVALID_FIELD"),
        ([], [pb.Filter(values=["x"])], "filters[0].name", "INVALID_FIELD"),
        ([], [pb.Filter(name="bucket")], "filters[0].values", "INVALID_FIELD"),
        ([], [bucket_filter("x" * 256)], "filters[0].values", "INVALID_FIELD"),
        ([], [bucket_filter("x")] * 51, "filters", "INVALID_FIELD"),
        ([], [bucket_filter(*["x"] * 201)], "filters", "INVALID_FIELD"),
        (["ami-00000001"], [pb.Filter(name="Bucket", values=["x"])], "filters[0].name", "INVALID_FIELD"),
    ],
)
def test_what_is_malformed_is_named(
    image_ids: list[str], filters: list[Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        describe_selection(image_ids, filters)
    assert [name for name, _ in caught.value.fields] == [field]
    assert caught.value.reason == reason


@pytest.mark.parametrize("image_id", ["ami-12345678", "ami-1234567890abcdef0"])
def test_old_and_new_image_ids_are_good(image_id: str) -> None:
    assert describe_selection([image_id], []).image_ids == {image_id}


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-5, 5)), st.integers(0, 999)), unique=True))
def test_the_order_is_newest_first_missing_last_and_total(keys: list[tuple[int | None, int]]) -> None:
    tasks = []
    for start, number in keys:
        task = pb.StoreImageTaskResult(task_id=f"{number:03}")
        if start is not None:
            task.task_start_time.FromMilliseconds(start)
        tasks.append(task)
    tasks.sort(key=order_of)
    starts = [t.task_start_time.ToMilliseconds() if t.HasField("task_start_time") else None for t in tasks]
    known = [start for start in starts if start is not None]
    assert starts == sorted(known, reverse=True) + [None] * (len(starts) - len(known))


NAMES = st.text(alphabet="abcdefgh-", min_size=1, max_size=12)
TOKENS = st.builds(
    PageToken,
    question=NAMES,
    after=st.tuples(st.integers(0, 1), st.integers(-(2**63), 0), NAMES),
    floor=st.floats(0, 2e9),
    targets=st.dictionaries(NAMES, st.lists(NAMES, min_size=1, unique=True).map(tuple), max_size=5),
)


@given(TOKENS)
def test_a_token_comes_back_as_it_went(token: PageToken) -> None:
    back = PageToken.decode(token.encode(), token.question)
    assert (back.after, back.floor) == (token.after, token.floor)
    assert {a: set(r) for a, r in back.targets.items()} == {a: set(r) for a, r in token.targets.items()}


@given(TOKENS, st.data())
def test_a_damaged_token_is_refused(token: PageToken, data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(token.encode() + "=="))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRequest) as caught:
        PageToken.decode(base64.urlsafe_b64encode(raw).decode().rstrip("="), token.question)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


@given(st.text(max_size=200))
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(InvalidRequest):
        PageToken.decode(text, "question")


def test_a_token_of_another_question_is_refused() -> None:
    token = PageToken("one", (0, 0, ""), 0.0)
    with pytest.raises(InvalidRequest, match="another question"):
        PageToken.decode(token.encode(), "other")


def test_a_token_of_680_targets_stays_small() -> None:
    regions = [f"eu-somewhere-{n}" for n in range(34)]
    token = PageToken("q" * 18, (0, -(2**60), "f" * 24), 1.7e9, {f"account-{n}": regions for n in range(20)})
    assert len(token.encode()) < 2048


def test_the_worst_filter_looks_at_each_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Counted:
        def fullmatch(self, text: str) -> None:
            looked.append(text)

    worst = pb.Filter(name="bucket", values=["*" + "?" * 20 + "b"] * 200)
    selection = selector_selection(pb.TaskSelector(filters=[worst]))
    ((_, pattern),) = selection.patterns
    monkeypatch.setattr(pattern, "_compiled", Counted())
    for number in range(1000):
        assert not selection.matches(pb.StoreImageTaskResult(bucket=f"{'a' * 60}-{number % 10}"))
    assert len(looked) == 10
    # Nor is more remembered than is of use.
    for number in range(2 * MAX_VERDICTS):
        selection.matches(pb.StoreImageTaskResult(bucket=str(number)))
    assert len(pattern._verdicts) == MAX_VERDICTS
