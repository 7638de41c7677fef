"""Who may import whom: the house's order, held."""

import ast
import sys
from pathlib import Path

import pytest

from processes import ROOT

SERVER = ROOT / "server/imagetasks_server"
CLIENT = ROOT / "clients/python/imagetasks"
SANDBOX = ROOT / "sandbox/imagetasks_sandbox"

# Top to bottom. A module may import only what stands below it.
ORDER = (
    "__main__",
    "main",
    "command",
    "serving",
    "reload",
    "stopping",
    "probe",
    "listening",
    "grpc_server",
    "health",
    "tls",
    "doctor_command",
    "doctor",
    "token_command",
    "checks_account",
    "checks_target",
    "checks",
    "accounts",
    "observation",
    "scraping",
    "gauges",
    "assembly",
    "boundary",
    "arrivals",
    "record",
    "gate",
    "jwks",
    "auth",
    "jwt_tokens",
    "identity",
    "service",
    "repeats",
    "answers",
    "parts",
    "waiting",
    "watching",
    "line",
    "followers",
    "follow",
    "ticks",
    "tracked",
    "lookups",
    "poller",
    "reader",
    "refresh",
    "roster",
    "ec2",
    "task_xml",
    "aws_organizations",
    "members",
    "aws_access",
    "aws_user_agent",
    "aws_session",
    "aws_regions",
    "aws_parser",
    "attempts",
    "aws_errors",
    "aws_credentials",
    "aws_models",
    "aws_http",
    "access",
    "tokens",
    "targets",
    "upstream",
    "shallow",
    "view",
    "pace",
    "budget",
    "selection",
    "turns",
    "collector",
    "descriptors",
    "tracing",
    "metrics",
    "tally",
    "sandbox",
    "config",
    "limit_settings",
    "caller_settings",
    "permission",
    "account_settings",
    "amounts",
    "addresses",
    "limits",
    "errors",
    "telemetry",
    "library_log",
    "clock",
    "event_loop",
    "contract",
    "__init__",
)

# Where correctness lives: driven through thousands of histories, so without I/O and time of their own.
PURE = {
    "auth",
    "budget",
    "identity",
    "jwt_tokens",
    "limits",
    "members",
    "pace",
    "permission",
    "selection",
    "shallow",
    "tokens",
    "view",
}
IMPURE = {
    "asyncio",
    "contextvars",
    "grpc",
    "os",
    "pathlib",
    "random",
    "socket",
    "structlog",
    "threading",
    "time",
}

# The only ones that know how AWS is spoken to.
SPEAK_TO_AWS = {"ec2", "task_xml", *(name for name in ORDER if name.startswith("aws_"))}
AWS = {"aioboto3", "aiobotocore", "aiohttp", "boto3", "botocore"}
# Serves Prometheus with it.
SERVES_HTTP = {"scraping"}

# The packages of the bare install: what `pip install` without extras brings.
BARE = {"google", "grpc", "imagetasks", "jmespath", "rich"}


def modules(package: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    }


def imports(path: Path) -> set[str]:
    """Full names of what a module imports, wherever in it; with `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


SERVER_MODULES = modules(SERVER)


def test_every_module_of_the_server_has_its_place() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(SERVER_MODULES) <= set(ORDER), "say in ORDER where it stands"


@pytest.mark.parametrize("module", SERVER_MODULES)
def test_imports_point_down(module: str) -> None:
    below = ORDER[ORDER.index(module) + 1 :] if module in ORDER else ()
    imported = {
        name.split(".")[1]
        for name in imports(SERVER_MODULES[module])
        if name.startswith("imagetasks_server.")
    }
    assert imported & set(ORDER) <= set(below)


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_pure_modules_are_pure(module: str) -> None:
    assert not roots(SERVER_MODULES[module]) & IMPURE


@pytest.mark.parametrize("module", sorted(set(SERVER_MODULES) - SPEAK_TO_AWS))
def test_few_modules_speak_to_aws(module: str) -> None:
    # What is scraped and what keys for tokens come from is HTTP too.
    served = {"aiohttp"} if module in SERVES_HTTP | {"jwks"} else set()
    assert not roots(SERVER_MODULES[module]) & (AWS - served)


@pytest.mark.parametrize("path", SERVER_MODULES.values(), ids=str)
def test_the_server_takes_only_stubs_from_the_client_and_nothing_from_the_sandbox(path: Path) -> None:
    assert "imagetasks_sandbox" not in roots(path)
    assert {name for name in imports(path) if name == "imagetasks" or name.startswith("imagetasks.")} <= {
        "imagetasks.v1",
        "imagetasks.v1.store_image_tasks_pb2",
        "imagetasks.v1.store_image_tasks_pb2_grpc",
    }


@pytest.mark.parametrize("path", modules(CLIENT).values(), ids=str)
def test_the_client_needs_the_bare_install_only(path: Path) -> None:
    assert roots(path) - set(sys.stdlib_module_names) <= BARE


@pytest.mark.parametrize("path", modules(SANDBOX).values(), ids=str)
def test_the_sandbox_knows_neither_client_nor_server(path: Path) -> None:
    assert not roots(path) & {"imagetasks", "imagetasks_server"}
