"""Generates from the contract what is checked in: Python stubs, their types, and the descriptor set.

`python scripts/stubs.py` writes them; with `--check` it writes nothing and fails if they are not what the
contract gives.
"""

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
PROTO = Path("imagetasks/v1/store_image_tasks.proto")
PYTHON = ROOT / "clients/python"
# What is generated, below `PYTHON`.
STUBS = tuple(
    PROTO.with_name(f"{PROTO.stem}_{ending}")
    for ending in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")
)
PROTOSET = PROTO.with_suffix(".protoset")
# Also in the descriptor set: the contract does not import it, but its messages are the errors' details, which
# tools can show only if they know them.
MORE = ("google/rpc/error_details.proto",)


class GenerationError(Exception):
    """The protocol buffer compiler refused."""


def generate(into: Path) -> None:
    """Writes `STUBS` and `PROTOSET` below a directory.

    Raises:
        GenerationError: The contract does not compile; the compiler has said why on stderr.
    """
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    (into / PROTOSET).parent.mkdir(parents=True, exist_ok=True)
    _protoc(
        f"--plugin=protoc-gen-mypy={plugin}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}_grpc",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
        str(PROTO),
    )
    # With imports, so that grpcurl needs nothing else; with comments, so that it can show them and buf can
    # lint them.
    _protoc(
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={into / PROTOSET}",
        str(PROTO),
        *MORE,
    )


def stale() -> list[Path]:
    """The checked-in files, relative to the root, that are not what the contract gives."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        return [
            (PYTHON / path).relative_to(ROOT)
            for path in (*STUBS, PROTOSET)
            if not (PYTHON / path).is_file() or (PYTHON / path).read_bytes() != (fresh / path).read_bytes()
        ]


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generates the Python stubs and the descriptor set.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if they are not up to date")
    try:
        if not parser.parse_args().check:
            generate(PYTHON)
            return 0
        paths = stale()
    except GenerationError as error:
        sys.stderr.write(f"stubs: {error}\n")
        return 1
    for path in paths:
        sys.stderr.write(f"stubs: {path} is not what {PROTO} gives; run make stubs\n")
    return 1 if paths else 0


def _protoc(*arguments: str) -> None:
    places = (PROTOS, _package("google.rpc").parents[1], _package("grpc_tools") / "_proto")
    status = protoc.main(["protoc", *(f"-I{place}" for place in places), *arguments])
    if status != 0:
        raise GenerationError(f"protoc ended with {status}")


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    sys.exit(main())
