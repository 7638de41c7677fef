"""Whole processes end as the drivers do: what the other tests compare is what users see."""

from dataclasses import replace

import pytest
from command_lines import aws_process, our_process
from pairs import Pair, Stage
from worlds import image_id, task


@pytest.fixture(scope="module")
def few(stage: Stage) -> Pair:
    return stage.pair(tasks=[task(number) for number in range(7)])


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ("--output text --max-items 3", None),
        ("--output table --query StoreImageTaskResults[].[AmiId,Bucket]", 120),
        (f"--image-ids {image_id(1)} ami-1", None),
        ("--foo", 100),
    ],
)
def test_a_process_ends_as_the_driver(few: Pair, words: str, columns: int | None) -> None:
    whole = replace(few, aws=aws_process(), ours=our_process())
    assert whole.compare(words.split(), columns) == few.both(words.split(), columns)
