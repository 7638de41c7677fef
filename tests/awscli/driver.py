"""Runs one command line many times in one process: the AWS CLI under its own Python, or ours under ours.

A process for each run would take most of the time for starting. A request is a line of JSON with its
number, the words, the environment and the terminal's columns (None: no terminal); the answer is one with the
number, both outputs and the exit code. With columns, standard output is a pseudo-terminal of that width.

Standard library only; started as `python driver.py aws|imagetasks`.
"""

import fcntl
import io
import json
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO

Run = Callable[[list[str]], object]


def aws() -> Run:
    """The AWS CLI, with its data files read once: that is most of what it does in a run."""
    colors: Any = import_module("colorama.initialise")
    clidriver = import_module("awscli.clidriver")
    loader = import_module("awscli.botocore.loaders").JSONFileLoader

    read = loader.load_file
    kept: dict[str, Any] = {}

    def read_once(self: Any, path: str) -> Any:
        if path not in kept:
            kept[path] = read(self, path)
        return kept[path]

    loader.load_file = read_once

    def run(words: list[str]) -> object:
        colors.orig_stdout = None
        try:
            code: object = clidriver.create_clidriver().main(words)
            return code
        finally:
            # What the end of the process would do; and --debug logs to where the run wrote.
            for logger in ("botocore", "awscli", "s3transfer", "urllib3"):
                logging.getLogger(logger).handlers.clear()
                logging.getLogger(logger).setLevel(logging.NOTSET)
            if colors.orig_stdout is not None:
                colors.reset_all()
                colors.orig_stdout = None

    return run


def imagetasks() -> Run:
    """Ours."""
    run: Run = import_module("imagetasks.cli").main
    return run


class _Terminal:
    """A pseudo-terminal to write to, whose other end is read all the while."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # a newline stays one byte
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.output: TextIO = open(theirs, "w", encoding="utf-8", newline="")  # noqa: SIM115, PTH123
        self._read = bytearray()
        self._reader = threading.Thread(target=self._keep_reading)
        self._reader.start()

    def _keep_reading(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 65536)
            except OSError:  # all writers have gone
                return
            self._read += chunk

    def close(self) -> str:
        """What was written."""
        self.output.close()
        self._reader.join()
        os.close(self._ours)
        return self._read.decode()


class _Pipe:
    """Not a terminal."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self.output: TextIO = io.TextIOWrapper(self._buffer, encoding="utf-8", newline="")

    def close(self) -> str:
        """What was written."""
        self.output.flush()
        return self._buffer.getvalue().decode()


def answer(run: Run, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the words of one request."""
    # The AWS CLI finds its own data by a variable that it sets when it is imported.
    own = {"AWS_DATA_PATH": path} if (path := os.environ.get("AWS_DATA_PATH")) else {}
    os.environ.clear()
    os.environ.update(request["environment"] | own)
    columns = request["columns"]
    stdout = _Pipe() if columns is None else _Terminal(columns)
    stderr = _Pipe()
    kept = sys.stdout, sys.stderr, sys.argv
    sys.stdout, sys.stderr, sys.argv = stdout.output, stderr.output, [name, *request["words"]]
    try:
        code = run(list(request["words"]))
    except SystemExit as ending:
        code = ending.code
    finally:
        sys.stdout, sys.stderr, sys.argv = kept
    ending = {"stdout": stdout.close(), "stderr": stderr.close(), "code": code or 0}
    return {"number": request["number"], **ending}


def main() -> None:
    """Answers each line of stdin."""
    name = sys.argv[1]
    run = {"aws": aws, "imagetasks": imagetasks}[name]()
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with requests, answers:
        for line in requests:
            json.dump(answer(run, name, json.loads(line)), answers)
            answers.write("\n")
            answers.flush()


if __name__ == "__main__":
    main()
