"""The help pages and the completion of words."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_lines import Ending, our_process

import imagetasks.cli
from imagetasks.cli.ec2 import describe, parsers

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
HIDDEN = {"--next-token", "--max-results", "--v2-debug"}


def run(*words: str, columns: int | None = None, **environment: str) -> Ending:
    return our_process().run(words, ENVIRONMENT | environment, columns)


def own_options() -> set[str]:
    """The command's, as its parser knows them."""
    return {option for action in describe.command_parser()._actions for option in action.option_strings}


@pytest.mark.parametrize(
    "words",
    [
        "ec2 describe-store-image-tasks help",
        "ec2 describe-store-image-tasks --help",
        "ec2 describe-store-image-tasks --output text help",
        "--region eu-central-1 ec2 describe-store-image-tasks -h",
    ],
)
def test_a_command_has_a_page(words: str) -> None:
    ending = run(*words.split())
    assert (ending.code, ending.stderr) == (0, "")
    assert ending.stdout.startswith("DESCRIBE-STORE-IMAGE-TASKS()")


@pytest.mark.parametrize("words", ["ec2 help", "ec2 --help"])
def test_the_group_has_a_page_that_lists_the_commands(words: str) -> None:
    ending = run(*words.split())
    assert ending.code == 0
    assert "o describe-store-image-tasks" in ending.stdout


def test_a_page_goes_through_the_pager_on_a_terminal_only() -> None:
    shout = "tr a-z A-Z"
    command = ("ec2", "describe-store-image-tasks", "help")
    assert "OPTIONS OF THE GATEWAY" in run(*command, PAGER=shout).stdout
    assert "page-size" in run(*command, PAGER=shout).stdout
    shown = run(*command, columns=80, PAGER=shout)
    assert (shown.code, "page-size" in shown.stdout, "PAGE-SIZE" in shown.stdout) == (0, False, True)
    assert "page-size" in run(*command, columns=80, MANPAGER="no-such-pager").stdout


def test_the_page_is_80_columns_and_tells_of_every_option() -> None:
    page = run("ec2", "describe-store-image-tasks", "help").stdout
    assert max(map(len, page.splitlines())) <= 80
    described = page.partition("\nOPTIONS\n")[2]
    for option in (own_options() | set(parsers.OWN)) - HIDDEN:
        assert re.search(rf"{option}\b", described), option


def test_the_group_needs_a_command() -> None:
    ending = run("ec2")
    assert (ending.code, ending.last_line) == (
        2,
        "imagetasks: error: the following arguments are required: operation",
    )


def test_an_unknown_command_is_told_what_there_is() -> None:
    ending = run("ec2", "describe-store-image-task")
    assert ending.code == 2
    assert "Invalid choice, valid choices are" in ending.stderr
    assert ending.last_line == "  * describe-store-image-tasks"


def test_help_needs_neither_grpc_nor_protobuf() -> None:
    script = (
        "import sys\nfrom imagetasks.cli import main\n"
        "main(['ec2', 'describe-store-image-tasks', '--generate-cli-skeleton'])\n"
        "main(['ec2', 'describe-store-image-tasks', 'help'])\n"
        "print({'grpc', 'google.protobuf', 'jmespath', 'rich', 'asyncio', 'botocore'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_nothing_of_botocore_or_the_aws_cli_is_imported() -> None:
    package = Path(imagetasks.cli.__file__).parent / "ec2"
    for module in package.rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) (awscli|botocore|boto3)", module.read_text(encoding="utf-8"), re.MULTILINE
        )


def completions(*words: str) -> Iterator[str]:
    script = (
        'source <("$0" completion bash)\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n_imagetasks\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = str(Path(sys.executable).with_name("imagetasks"))
    done = subprocess.run(
        ["bash", "-c", script, path, *words], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stderr == ""
    return iter(done.stdout.split())


def test_completion_knows_every_command_and_option() -> None:
    assert set(completions("imagetasks", "")) == {*imagetasks.cli.COMMANDS, "--help", "--version"}
    of_command = set(completions("imagetasks", "ec2", "describe-store-image-tasks", ""))
    page = run("ec2", "describe-store-image-tasks", "help").stdout
    words = re.findall(r"--[a-z0-9-]+", page.partition("SYNOPSIS")[2].partition("OPTIONS")[0])
    assert of_command == {*words, "help", "--help"}
    assert set(completions("imagetasks", "targets", "--r")) == {"--regions"}
    assert {"--filters", "--accounts"} <= set(completions("imagetasks", "stream", "--"))


def test_completion_knows_values() -> None:
    command = ("imagetasks", "ec2", "describe-store-image-tasks")
    assert list(completions(*command, "--output", "t")) == ["text", "table"]
    assert list(completions(*command, "--color", "o")) == ["on", "off"]
    assert list(completions("imagetasks", "completion", "z")) == ["zsh"]
    assert run("completion", "zsh").stdout.startswith("autoload -Uz compinit bashcompinit")
