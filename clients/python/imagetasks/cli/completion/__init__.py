"""`imagetasks completion`: a script that completes the command line's words in a shell."""

import argparse
import sys
from importlib import resources

from imagetasks import cli

_SHELLS = ("bash", "zsh")

_EPILOG = """\
examples:
  source <(imagetasks completion bash)
  imagetasks completion zsh >> ~/.zshrc
"""


def run(arguments: list[str]) -> int:
    """Prints the script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="imagetasks completion",
        description="Prints a script that completes the words of imagetasks in a shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell")
    shell = parser.parse_args(arguments).shell
    if shell == "zsh":
        # zsh runs bash's completions once it has been told so.
        sys.stdout.write("autoload -Uz compinit bashcompinit && compinit && bashcompinit\n")
    script = resources.files("imagetasks.cli.completion").joinpath("imagetasks.bash")
    sys.stdout.write(script.read_text(encoding="utf-8"))
    return cli.OK
