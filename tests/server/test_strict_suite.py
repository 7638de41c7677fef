"""The suite is as strict as it says: each of these small tests must fail, and for its own reason."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ROOT, SECONDS

SINS = {
    "a_task_left_behind": (
        "tasks left behind",
        """
        async def test_sin():
            asyncio.get_running_loop().kept = asyncio.create_task(asyncio.sleep(60))
        """,
    ),
    "a_process_left_behind": (
        "processes left behind",
        """
        def test_sin(request):
            process = subprocess.Popen(["sleep", "60"])
            request.session.config.add_cleanup(lambda: (process.kill(), process.wait()))
        """,
    ),
    "a_socket_left_open": (
        "unclosed <socket",
        """
        def test_sin():
            socket.socket()
        """,
    ),
    "a_coroutine_never_awaited": (
        "was never awaited",
        """
        async def test_sin():
            asyncio.sleep(1)
        """,
    ),
    "an_exception_nobody_saw": (
        "PytestUnraisableExceptionWarning",
        """
        class Sinner:
            def __del__(self):
                raise RuntimeError("in a finalizer")

        def test_sin():
            Sinner()
        """,
    ),
    "an_exception_in_a_thread": (
        "PytestUnhandledThreadExceptionWarning",
        """
        def test_sin():
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
        """,
    ),
    "a_warning": (
        "DeprecationWarning: old",
        """
        def test_sin():
            warnings.warn("old", DeprecationWarning)
        """,
    ),
    "a_loop_blocked_by_our_code": (
        "Blocking call to",
        """
        async def test_sin(monkeypatch):
            from imagetasks_server import config
            monkeypatch.delenv("IMAGETASKS_CONFIG", raising=False)
            config.load(__file__)
        """,
    ),
}


@pytest.mark.parametrize(("complaint", "test"), SINS.values(), ids=SINS)
def test_a_sin_is_noticed(tmp_path: Path, complaint: str, test: str) -> None:
    lines = test.strip("\n").splitlines()
    body = "\n".join(line.removeprefix("        ") for line in lines)
    (tmp_path / "test_sin.py").write_text(
        f"import asyncio, socket, subprocess, threading, warnings\n\n{body}\n"
    )
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)),
        ],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert complaint in done.stdout
