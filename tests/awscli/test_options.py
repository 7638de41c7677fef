"""Every option of the page, one row each: what is given, and that both command lines make the same of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Final

import pytest
from command_lines import Ending
from pairs import Pair, Stage
from worlds import image_id, task

PAGE: Final = resources.files("imagetasks.cli.ec2").joinpath("pages/describe-store-image-tasks.txt")
OWN: Final = {
    "--show-targets",
    "--max-age",
    "--forbid-stale",
    "--token-file",
    "--client-certificate",
    "--client-key",
}

Judge = Callable[[Pair, list[str]], None]


@pytest.fixture(scope="module")
def few(stage: Stage) -> Pair:
    return stage.pair(tasks=[task(number) for number in range(9)])


def same(pair: Pair, words: list[str]) -> None:
    pair.walk(words, steps=4)


def same_as_without(pair: Pair, words: list[str]) -> None:
    """Ours prints what it prints without the option; it speaks of the way to the gateway, not to EC2."""
    assert _ours(pair, words) == _ours(pair, [])


def names_program_and_version(pair: Pair, words: list[str]) -> None:
    for ending in pair.both(words):
        assert ending.code == 0
        assert re.match(r"[a-z-]+/\d+\.\d+\.\d+ Python/3\.\d+\.\d+", ending.stdout)


def reaches_the_gateway(pair: Pair, words: list[str]) -> None:
    elsewhere = replace(pair, address="127.0.0.1:1")
    assert _ours(elsewhere, []).code == 255
    assert _ours(elsewhere, [*words, f"http://{pair.address}"]) == _ours(pair, [])


def names_an_account(pair: Pair, words: list[str]) -> None:
    assert _ours(pair, [*words, "canned"]) == _ours(pair, [])
    # An unknown one is the same error.
    pair.compare([*words, "nobody"])


def names_a_region(pair: Pair, words: list[str]) -> None:
    # The environment names another one.
    elsewhere = replace(pair, region="us-east-1")
    assert elsewhere.compare([*words, pair.region]) == pair.compare([])
    elsewhere.compare([*words, "not a region"])


def says_what_it_does(pair: Pair, words: list[str]) -> None:
    theirs, ours = pair.compare(words)
    assert " - DEBUG - " in theirs.stderr
    assert "DescribeStoreImageTasks" in ours.stderr


def _ours(pair: Pair, words: list[str]) -> Ending:
    return pair.both(words)[1]


@dataclass(frozen=True)
class Row:
    option: str
    words: str
    judge: Judge = same


ROWS = [
    Row("--image-ids", f"--image-ids {image_id(1)} {image_id(3)}"),
    Row("--dry-run", "--dry-run"),
    Row("--no-dry-run", "--no-dry-run"),
    Row("--filters", "--filters Name=task-state,Values=Completed Name=bucket,Values=a*"),
    Row("--cli-input-json", '--cli-input-json {"Filters":[{"Name":"bucket","Values":["alpha"]}]}'),
    Row(
        "--starting-token",
        "--starting-token eyJOZXh0VG9rZW4iOiBudWxsLCAiYm90b190cnVuY2F0ZV9hbW91bnQiOiA0fQ==",
    ),
    Row("--page-size", "--page-size 4 --output text"),
    Row("--max-items", "--max-items 4"),
    Row("--generate-cli-skeleton", "--generate-cli-skeleton output"),
    Row("--debug", "--debug", says_what_it_does),
    Row("--endpoint-url", "--endpoint-url", reaches_the_gateway),
    Row("--no-verify-ssl", "--no-verify-ssl"),
    Row("--no-paginate", "--no-paginate"),
    Row("--output", "--output table"),
    Row("--query", "--query StoreImageTaskResults[].[AmiId,StoreTaskState]"),
    Row("--profile", "--profile", names_an_account),
    Row("--region", "--region", names_a_region),
    Row("--version", "--version", names_program_and_version),
    Row("--color", "--color on --output table"),
    Row("--no-sign-request", "--no-sign-request", same_as_without),
    Row("--ca-bundle", "--ca-bundle /nonexistent", same_as_without),
    Row("--cli-read-timeout", "--cli-read-timeout 30"),
    Row("--cli-connect-timeout", "--cli-connect-timeout 30"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.option)
def test_each_option_of_the_page_works(few: Pair, row: Row) -> None:
    row.judge(few, row.words.split())


def test_no_option_of_the_page_is_without_a_row() -> None:
    synopsis = PAGE.read_text(encoding="utf-8").partition("SYNOPSIS")[2].partition("OPTIONS")[0]
    assert set(re.findall(r"--[a-z-]+", synopsis)) - OWN == {row.option for row in ROWS}
