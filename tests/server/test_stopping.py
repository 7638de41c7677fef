"""What ends the process from outside besides SIGTERM, and what does not."""

import functools
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import SECONDS, becomes

COMMAND = (sys.executable, "-m", "imagetasks_server", "--listen", "127.0.0.1:0")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    nobody = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return kept | nobody | {"AWS_EC2_METADATA_DISABLED": "true", "IMAGETASKS_LOG_JSON": "true"}


def tells(log: Path, event: str) -> bool:
    return f'"{event}"' in log.read_text()


def test_it_ends_with_its_standard_input(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [*COMMAND, "--exit-with-stdin"], stdin=subprocess.PIPE, stderr=stderr, env=environment()
        ) as process,
    ):
        assert process.stdin is not None
        assert becomes(functools.partial(tells, log, "listening"))
        process.stdin.write(b"not the end")
        process.stdin.flush()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    assert tells(log, "stopped")


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, None], ids=["nothing to read", "inherited"])
def test_otherwise_its_standard_input_is_no_matter(tmp_path: Path, stdin: int | None) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(COMMAND, stdin=stdin, stderr=stderr, env=environment()) as process,
    ):
        assert becomes(functools.partial(tells, log, "listening"))
        # SIGHUP reads the configuration, of which there is none.
        process.send_signal(signal.SIGHUP)
        assert becomes(functools.partial(tells, log, "configuration read again"))
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_a_terminal_that_closes_ends_it_and_a_signal_alone_does_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    master, slave = pty.openpty()
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            ["setsid", "--ctty", "--wait", *COMMAND],
            stdin=slave,
            stderr=stderr,
            env=environment(),
        ) as process,
    ):
        os.close(slave)
        assert becomes(functools.partial(tells, log, "listening"))
        foreground = os.tcgetpgrp(master) if os.isatty(master) else 0
        os.killpg(foreground, signal.SIGHUP)
        assert becomes(functools.partial(tells, log, "configuration read again"))
        assert process.poll() is None
        os.close(master)
        assert process.wait(SECONDS) == 0
    assert tells(log, "stopped")
