"""The help pages: plain text of 80 columns beside this module, through a pager on a terminal."""

import os
import shlex
import subprocess
import sys
from importlib import resources
from shutil import which

_PAGER = "less -R"


def show(name: str) -> int:
    """Shows the page of a command or of the group; returns the exit code."""
    page = resources.files("imagetasks.cli.ec2").joinpath("pages", f"{name}.txt").read_text(encoding="utf-8")
    pager = shlex.split(os.environ.get("MANPAGER") or os.environ.get("PAGER") or _PAGER)
    if sys.stdout.isatty() and which(pager[0]):
        # Ctrl-C is the pager's as long as it runs; it puts the terminal back in order.
        with subprocess.Popen(pager, stdin=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603 - the user's own pager
            while process.poll() is None:
                try:
                    process.communicate(page)
                except KeyboardInterrupt:
                    continue
    else:
        sys.stdout.write(page)
    return 0
