"""`imagetasks protoset`: where the contract's descriptor set lies."""

import argparse
import sys
from importlib import resources
from pathlib import Path

from imagetasks import cli

_FILE = "store_image_tasks.protoset"


def run(arguments: list[str]) -> int:
    """Prints the path; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="imagetasks protoset",
        description="Prints the path of the contract's descriptor set, which tools like grpcurl read.",
        epilog="example:\n"
        '  grpcurl -plaintext -protoset "$(imagetasks protoset)" 127.0.0.1:50051 '
        "imagetasks.v1.StoreImageTaskService/ListTargets",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    path = Path(str(resources.files("imagetasks.v1") / _FILE))
    if not path.is_file():
        sys.stderr.write(f"imagetasks: this installation lacks the descriptor set {path}\n")
        return cli.INCOMPLETE
    sys.stdout.write(f"{path}\n")
    return cli.OK
