"""The image's health check."""

import os
import subprocess
import sys

from processes import ROOT, gateway


def check(listen: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "scripts/health.py"],
        cwd=ROOT,
        env=os.environ | {"IMAGETASKS_LISTEN": listen},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_asks_the_gateway_on_loopback() -> None:
    with gateway("--sandbox") as running:
        port = running.address.rpartition(":")[2]
        for host in ("127.0.0.1", "0.0.0.0"):
            done = check(f"{host}:{port}")
            assert (done.returncode, done.stdout) == (0, "SERVING\n")


def test_it_fails_where_nothing_listens() -> None:
    done = check("127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("127.0.0.1:1: UNAVAILABLE: ")
    assert "Traceback" not in done.stderr
