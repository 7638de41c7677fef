"""The sandbox as a process: what it prints, how it ends, what it leaves."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import time
from urllib.parse import urlsplit

import pytest

from imagetasks_sandbox.launch import sandbox

COMMAND = [sys.executable, "-m", "imagetasks_sandbox", "--port", "0"]
SECONDS = 30.0


def test_the_ready_line_tells_where_and_as_whom() -> None:
    with sandbox() as running:
        ready = running.ready
        assert urlsplit(running.endpoint).hostname == "127.0.0.1"
        assert ready["environment"]["AWS_ENDPOINT_URL"] == running.endpoint
        assert ready["environment"]["AWS_REGION"] == "us-east-1"
        assert ready["environment"]["AWS_CONFIG_FILE"] == os.devnull
        assert ready["environment"]["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
        assert ready["environment"]["AWS_EC2_METADATA_DISABLED"] == "true"
        assert ready["accounts"] == [
            {"name": "main", "account_id": "123456789012"},
            {
                "name": "images-dev",
                "account_id": "111122223333",
                "role_arn": "arn:aws:iam::111122223333:role/imagetasks",
            },
            {
                "name": "images-prod",
                "account_id": "444455556666",
                "role_arn": "arn:aws:iam::444455556666:role/imagetasks",
            },
        ]
        assert len(ready["regions"]) >= 12
        assert ready["denied"] in ready["regions"]
        assert ready["not_opted_in"] not in ready["regions"]
        environment = running.environment({"PATH": "/bin", "AWS_PROFILE": "production"})
        assert "AWS_PROFILE" not in environment
        assert environment["PATH"] == "/bin"
    # It ended with its stdin, quietly, and nobody listens any more.
    assert running.process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(running.endpoint).port or 0)).close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_at_once_and_quietly(number: int, code: int) -> None:
    with subprocess.Popen(
        [*COMMAND, "--ready-json", "--seed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        sent = time.monotonic()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=SECONDS)
        assert time.monotonic() - sent < 5
        assert (process.returncode, rest, errors) == (code, b"", b"")


def test_a_person_is_told_what_to_paste() -> None:
    with subprocess.Popen(
        [*COMMAND, "--exit-with-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "aws ec2 describe-store-image-tasks\n":
            lines.append(process.stdout.readline())
            assert lines[-1], "ended too early"
        process.communicate(timeout=SECONDS)
    text = "".join(lines)
    assert "export AWS_ENDPOINT_URL=http://127.0.0.1:" in text
    assert "aws ec2 create-store-image-task" in text


def test_it_dies_with_a_parent_that_is_killed() -> None:
    parent = textwrap.dedent(
        """
        import sys
        from imagetasks_sandbox.launch import sandbox
        with sandbox():
            sys.stdout.write("up\\n")
            sys.stdout.flush()
            sys.stdin.read()
        """
    )
    # The sandbox inherits the parent's stderr: that pipe ends when the last of the two is gone.
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stderr, selectors.EVENT_READ)
            assert selector.select(SECONDS), "the sandbox outlived its parent"
            assert process.stderr.read() == b""


def test_settings_of_the_user_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # With boto looking at any of these it could not start.
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/no/such/file")
    with sandbox() as running:
        assert running.endpoint


def test_a_port_in_use_is_an_error_with_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "imagetasks_sandbox", "--port", port],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert ended.returncode == 1
    assert "in use" in ended.stderr


def test_a_launch_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="ended before it was ready"), sandbox("--host", "192.0.2.1"):
        pass
