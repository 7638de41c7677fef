"""The Makefile: its help, and how it finds Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ROOT, without_make


def make(
    *arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        env=without_make() | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def python(path: Path, *, is_new: bool) -> None:
    """A `python` that is this one, or one that is too old for us."""
    path.parent.mkdir(exist_ok=True)
    if is_new:
        path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    else:
        path.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.9.2\nexit 1\n')
    path.chmod(0o755)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project without dependencies, to make a virtual environment for."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    return tmp_path


def test_help_comes_first_and_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    done = make()
    assert done.stdout == make("help").stdout
    assert [line.split()[1] for line in done.stdout.splitlines()] == phony[1].split()


def test_the_first_python_that_is_new_enough_is_taken(empty: Path) -> None:
    python(empty / "bin/python3", is_new=False)
    python(empty / "bin/python3.12", is_new=True)
    path = f"{empty / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = make(".venv/locked", cwd=empty, environment={"PATH": path})
    assert done.returncode == 0, done.stderr
    assert (empty / ".venv/bin/python").exists()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("PYTHON=bin/old", "imagetasks needs Python 3.11 or newer; bin/old is Python 3.9.2"),
        ("PYTHON=", "imagetasks needs Python 3.11 or newer, and none was found"),
    ],
)
def test_without_a_python_it_says_so(chosen: str, words: str, empty: Path) -> None:
    python(empty / "bin/old", is_new=False)
    done = make(".venv/locked", chosen, cwd=empty)
    assert done.returncode != 0
    assert words in done.stderr
    assert not (empty / ".venv").exists()


def test_an_image_needs_an_engine_and_says_so(tmp_path: Path) -> None:
    python(tmp_path / "docker", is_new=False)
    done = make("image", environment={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode != 0
    assert "make image needs docker and a running engine" in done.stderr
