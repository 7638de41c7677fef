"""Worlds and command lines made by hypothesis."""

import json
import random
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from worlds import STATES, image_id, start_of

# What XML can carry; a carriage return would come back as a newline.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=12)
COUNTS = st.one_of(st.integers(0, 12), st.sampled_from([40, 199, 200, 201, 399, 400, 401, 450]))
BUCKETS = ("alpha", "alphabet", "bücket", "日本語", "a*b", "a?b", "b\\c", "with space", "")

QUERIES = (
    "StoreImageTaskResults",
    "StoreImageTaskResults[0]",
    "StoreImageTaskResults[-1]",
    "StoreImageTaskResults[].AmiId",
    "StoreImageTaskResults[*].[AmiId,ProgressPercentage]",
    "StoreImageTaskResults[].{id:AmiId,state:StoreTaskState,why:StoreTaskFailureReason}",
    "StoreImageTaskResults[?StoreTaskState=='InProgress'].[Bucket,S3objectKey,ProgressPercentage]",
    "StoreImageTaskResults[?ProgressPercentage>`50`]",
    "sort_by(StoreImageTaskResults,&to_string(AmiId))[0:3]",
    "length(StoreImageTaskResults)",
    "max_by(StoreImageTaskResults,&ProgressPercentage)",
    "StoreImageTaskResults[0].[AmiId,[Bucket,S3objectKey],{p:ProgressPercentage}]",
    "{first:StoreImageTaskResults[0],all:StoreImageTaskResults[].AmiId,n:length(StoreImageTaskResults)}",
    "StoreImageTaskResults[].[AmiId]",
    "StoreImageTaskResults[][]",
    "[StoreImageTaskResults[0],`1`]",
    "[`1`,StoreImageTaskResults]",
    "[StoreImageTaskResults[].AmiId,`null`,`true`,`1.5`]",
    "group_by(StoreImageTaskResults,&StoreTaskState)",
    "StoreImageTaskResults[0].TaskStartTime",
    "StoreImageTaskResults[*].{a:AmiId,nested:{b:Bucket,list:[ProgressPercentage]}}",
    "join(',',StoreImageTaskResults[].AmiId)",
    "keys(@)",
    "to_string(@)",
    "@",
    "Foo",
    "Foo.Bar[0]",
    "`[]`",
    "`{}`",
    "`0`",
    '`""`',
    "'日本語'",
    "&AmiId",
    "sum(StoreImageTaskResults[].ProgressPercentage)",
    "StoreImageTaskResults[",
    "nothing(@)",
    "length(@.Foo)",
    "",
)


@dataclass(frozen=True)
class World:
    """Tasks of a few kinds, mixed.

    Attributes:
        kinds: Members that tasks of a kind have, absent and empty ones too.
        count: Tasks.
        seed: Of the mixture.
        all_have_ids: None lacks its AMI's id.
        oldest_has_start: Nor does the last lack its start. Two without would be in no certain order.
    """

    kinds: list[dict[str, Any]]
    count: int
    seed: int
    all_have_ids: bool
    oldest_has_start: bool

    def tasks(self) -> list[dict[str, Any]]:
        """As the canned EC2 takes them."""
        pick = random.Random(self.seed)
        made = []
        for number in range(self.count):
            task = dict(pick.choice(self.kinds))
            task["TaskStartTime"] = start_of(number)
            if self.all_have_ids or pick.random() < 0.9:
                task["AmiId"] = image_id(pick.randrange(self.count))
            made.append(task)
        if made and not self.oldest_has_start:
            del made[-1]["TaskStartTime"]
        return made


KINDS = st.fixed_dictionaries(
    {},
    optional={
        "Bucket": st.one_of(st.sampled_from(BUCKETS), TEXT),
        "S3objectKey": st.one_of(TEXT, st.just("ami.bin")),
        "ProgressPercentage": st.integers(0, 100),
        "StoreTaskState": st.sampled_from([*STATES, "Queued", ""]),
        "StoreTaskFailureReason": st.one_of(st.just(""), TEXT),
    },
)
WORLDS = st.builds(
    World,
    kinds=st.lists(KINDS, min_size=1, max_size=5),
    count=COUNTS,
    seed=st.integers(0, 2**32),
    all_have_ids=st.booleans(),
    oldest_has_start=st.integers(0, 9).map(bool),
)


def _shorthand(value: str) -> str:
    return f'"{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'


@st.composite
def _filters(draw: st.DrawFn) -> list[str]:
    chosen = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["bucket", "bucket", "task-state", "task-state", "ami-id", "Bucket"]),
                st.lists(
                    st.one_of(
                        st.sampled_from(
                            [*STATES, *BUCKETS, "*", "a*", "*b*", "?????", "In*", "\\*", "a\\*b"]
                        ),
                        TEXT,
                    ),
                    max_size=3,
                ),
            ),
            max_size=3,
        )
    )
    if draw(st.booleans()):
        form = [{"Name": name, "Values": values} for name, values in chosen]
        if draw(st.booleans()) and form:
            return [json.dumps(each, ensure_ascii=draw(st.booleans())) for each in form]
        return [json.dumps(form, ensure_ascii=draw(st.booleans()))]
    return [
        f"Name={name}" + (f",Values={','.join(_shorthand(value) for value in values)}" if values else "")
        for name, values in chosen
    ]


@st.composite
def _image_ids(draw: st.DrawFn, count: int) -> list[str]:
    known = st.integers(0, max(0, count - 1)).map(image_id)
    odd = st.sampled_from(
        ["ami-0000000a", "ami-0000000b", "ami-1", "", "x", "ami-0000000A", "ami-12345678,ami-1"]
    )
    ids = draw(st.lists(st.one_of(known, known, known, odd), max_size=22))
    if ids and draw(st.integers(0, 3)) == 0:
        return [json.dumps(ids)]
    return ids


def _prefixes(option: str) -> st.SearchStrategy[str]:
    """The option, or a beginning of it, unique or not; but not of --profile, which names another thing."""
    least = min(4 if option.startswith("--p") else 3, len(option))
    beginnings = st.integers(least, len(option)).map(lambda length: option[:length])
    return st.one_of(st.just(option), st.just(option), beginnings)


@st.composite
def command_lines(draw: st.DrawFn, count: int) -> list[str]:
    """Options for a world of so many tasks."""
    words: list[str] = []

    def maybe(chance: int, *given: str) -> bool:
        if draw(st.integers(0, chance)) == 0:
            words.extend([draw(_prefixes(given[0])), *given[1:]])
            return True
        return False

    maybe(1, "--output", draw(st.sampled_from(["json", "text", "table", "table", "text", "yaml"])))
    if draw(st.integers(0, 2)) == 0:
        words += ["--query", draw(st.sampled_from(QUERIES))]
    selected = draw(st.integers(0, 5))
    if selected == 0:
        words += ["--image-ids", *draw(_image_ids(count))]
    elif selected <= 2:
        words += ["--filters", *draw(_filters())]
    size = str(draw(st.sampled_from([-1, 0, 1, 2, 3, 7, 50, 150, 200, 201, 1000])))
    most = str(draw(st.sampled_from([-1, 0, 1, 2, 5, 10, 100, 199, 200, 250, 401])))
    if not maybe(9, "--max-results", size):
        # Few items of a long list, a page each, would take minutes.
        if count < 50 or int(size) not in range(1, 50):
            maybe(2, "--page-size", size)
        maybe(2, "--max-items", most)
    maybe(14, "--no-paginate")
    maybe(19, "--dry-run")
    maybe(19, "--no-dry-run")
    maybe(9, "--color", draw(st.sampled_from(["on", "off", "auto", "red"])))
    if draw(st.integers(0, 6)) == 0:
        words += ["--cli-input-json", draw(_input_json(count))]
    maybe(19, "--generate-cli-skeleton", *draw(st.sampled_from([(), ("input",), ("output",), ("x",)])))
    maybe(
        24,
        "--starting-token",
        draw(st.sampled_from(["x", "None___2", "eyJOZXh0VG9rZW4iOiBudWxsfQ==", "e30="])),
    )
    maybe(24, draw(st.sampled_from(["--foo", "stray", "--", "-x"])))
    return words


@st.composite
def _input_json(draw: st.DrawFn, count: int) -> str:
    members = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "ImageIds": st.one_of(_image_ids(count), st.sampled_from(["x", None, [1]])),
                "DryRun": st.sampled_from([True, False, False, False, "yes"]),
                "Filters": st.sampled_from(
                    [
                        [],
                        [{"Name": "bucket", "Values": ["*a*"]}],
                        [{"Name": "task-state"}],
                        [{"Values": ["x"]}],
                        {"Name": "bucket"},
                        [{"Name": 1, "Values": "x", "Other": 2}],
                    ]
                ),
                "MaxResults": st.sampled_from([0, 5, 150, 250, "5"]),
                "PaginationConfig": st.sampled_from([{"MaxItems": 3}, {"PageSize": 150}, {"MaxItems": "x"}]),
                "Foo": st.just(1),
            },
        )
    )
    return json.dumps(members, ensure_ascii=draw(st.booleans()))
