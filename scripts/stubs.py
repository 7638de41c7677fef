"""Generates from the contract what is checked in: stubs, their types, the descriptor set, fingerprints.

`python scripts/stubs.py` writes them; with `--check` it writes nothing and fails if they are not what the
contract gives. Stubs of a language whose generator is not here are left out, and it says so.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from contract import contracts
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
PROTO = Path("imagetasks/v1/store_image_tasks.proto")
PYTHON = Path("clients/python")
GO = Path("clients/go")
GO_MODULE = "github.com/imagetasks/imagetasks/clients/go"
GO_PLUGINS = tuple(ROOT / ".build/bin" / name for name in ("protoc-gen-go", "protoc-gen-go-grpc"))
# What is generated, relative to the root.
PYTHON_STUBS = tuple(
    PYTHON / PROTO.with_name(f"{PROTO.stem}_{ending}")
    for ending in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")
)
PROTOSET = PYTHON / PROTO.with_suffix(".protoset")
GO_STUBS = tuple(GO / "imagetasksv1" / f"{PROTO.stem}{ending}" for ending in (".pb.go", "_grpc.pb.go"))
RUST_STUBS = (Path("clients/rust/src/imagetasks.v1.rs"),)
RUST_GENERATOR = ROOT / ".build/rust/debug/imagetasks-stubs"
# Also in the descriptor set: the contract does not import it, but its messages are the errors' details, which
# tools can show only if they know them.
MORE = ("google/rpc/error_details.proto",)


class GenerationError(Exception):
    """The protocol buffer compiler refused."""


def generate(into: Path) -> list[Path]:
    """Writes all that is generated below a directory; returns what it has written, relative to it.

    Raises:
        GenerationError: The contract does not compile; the compiler has said why on stderr.
    """
    _python(into / PYTHON)
    written = [*PYTHON_STUBS, PROTOSET]
    if _has_go():
        _go(into / GO)
        written += GO_STUBS
    if RUST_GENERATOR.is_file():
        _rust(into)
        written += RUST_STUBS
    for path, text in contracts().items():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_text(text)
        written.append(path)
    return written


def missing() -> list[str]:
    """What is left out, and why."""
    left_out = []
    if not _has_go():
        left_out.append("Go's stubs, for protoc-gen-go is not built (make stubs builds it where Go is)")
    if not RUST_GENERATOR.is_file():
        left_out.append("Rust's stubs, for their generator is not built (make stubs builds it where Rust is)")
    return left_out


def _has_go() -> bool:
    return all(plugin.is_file() for plugin in GO_PLUGINS)


def stale() -> list[Path]:
    """The checked-in files, relative to the root, that are not what the contract gives."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        return [
            path
            for path in generate(fresh)
            if not (ROOT / path).is_file() or (ROOT / path).read_bytes() != (fresh / path).read_bytes()
        ]


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generates what is checked in from the contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if they are not up to date")
    paths: list[Path] = []
    try:
        if parser.parse_args().check:
            paths = stale()
        else:
            generate(ROOT)
    except GenerationError as error:
        sys.stderr.write(f"stubs: {error}\n")
        return 1
    for left_out in missing():
        sys.stdout.write(f"stubs: left out: {left_out}\n")
    for path in paths:
        sys.stderr.write(f"stubs: {path} is not what {PROTO} gives; run make stubs\n")
    return 1 if paths else 0


def _python(into: Path) -> None:
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    (into / PROTO).parent.mkdir(parents=True, exist_ok=True)
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
        f"--descriptor_set_out={into / PROTO.with_suffix('.protoset')}",
        str(PROTO),
        *MORE,
    )


def _go(into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    package = f"M{PROTO}={GO_MODULE}/imagetasksv1"
    options = [
        option
        for name in ("go", "go-grpc")
        for option in (
            f"--{name}_out={into}",
            f"--{name}_opt=module={GO_MODULE}",
            f"--{name}_opt={package}",
        )
    ]
    plugins = [f"--plugin={plugin.name}={plugin}" for plugin in GO_PLUGINS]
    _protoc(*plugins, *options, str(PROTO))


def _rust(into: Path) -> None:
    (into / RUST_STUBS[0]).parent.mkdir(parents=True, exist_ok=True)
    command = [RUST_GENERATOR, into / PROTOSET, (into / RUST_STUBS[0]).parent]
    done = subprocess.run(command, check=False)  # noqa: S603 our own generator, on our own files
    if done.returncode != 0:
        raise GenerationError(f"the generator of Rust's stubs ended with {done.returncode}")


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
