"""What the command line sends to say who calls, and what it says when that is not believed."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from scripted_gateway import ScriptedGateway, failing, reason, status, targets_answer
from test_command_line import environment

from imagetasks import channel


def run(
    gateway: ScriptedGateway | None, *words: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    variable = {} if token is None else {"IMAGETASKS_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "imagetasks", *words],
        env=environment(gateway) | variable,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", [["targets"], ["ec2", "describe-store-image-tasks"]])
def test_the_variable_is_sent_where_no_file_is_named(
    gateway: ScriptedGateway, tmp_path: Path, command: list[str]
) -> None:
    gateway.targets = lambda *_: targets_answer("eu-central-1")
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    for more in ([], ["--token-file", str(file)]):
        run(gateway, *command, *more, token="of-the-variable")
    sent = [call.metadata["authorization"] for call in gateway.calls]
    assert sent == ["Bearer of-the-variable", "Bearer of-the-file"]


def test_without_either_nothing_is_sent(gateway: ScriptedGateway) -> None:
    gateway.targets = lambda *_: targets_answer("eu-central-1")
    assert run(gateway, "targets", token="").returncode == 0
    assert "authorization" not in gateway.calls[0].metadata


def test_a_variable_that_is_no_token_is_refused_and_not_shown() -> None:
    done = run(None, "targets", token="se\ncret")
    assert done.returncode == 2
    assert "IMAGETASKS_TOKEN does not hold a bearer token" in done.stderr
    assert "cret\n" not in done.stderr


def test_a_token_file_is_read_anew_and_the_last_good_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    token = channel.chosen_token(str(file))
    sent = [channel.metadata(token)]
    for text in ("two", "", "\N{SNOWMAN}"):
        file.write_text(text, encoding="utf-8")
        sent.append(channel.metadata(token))
    file.unlink()
    sent.append(channel.metadata(token))
    assert [value for ((_, value),) in sent] == ["Bearer one", *["Bearer two"] * 4]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("CREDENTIAL_MISSING", "--token-file, IMAGETASKS_TOKEN, or --client-certificate"),
        ("CREDENTIAL_INVALID", "still permitted?"),
        ("CREDENTIAL_EXPIRED", "get a new one"),
    ],
)
def test_who_is_not_believed_is_told_what_helps(gateway: ScriptedGateway, word: str, hint: str) -> None:
    gateway.targets = failing(status(grpc.StatusCode.UNAUTHENTICATED, "no", reason(word)))
    done = run(gateway, "targets", token="secret-token")
    assert done.returncode == 3
    assert hint in done.stderr
    assert word in done.stderr
    assert "secret-token" not in done.stderr
