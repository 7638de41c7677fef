"""The locks say what pyproject.toml says, by hash, and name no place to get it from."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIRED: list[str] = PROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

ALL = "requirements.lock"
SERVER = "requirements.server.lock"
BUILD = "requirements.build.lock"
AWSCLI = "tests/awscli/requirements.lock"

PINNED = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>[^\\]+))? \\\n"
    r"(?:    --hash=sha256:[0-9a-f]{64} \\\n)*"
    r"    --hash=sha256:[0-9a-f]{64}\n",
    re.MULTILINE,
)


def pinned(lock: str) -> dict[str, str]:
    """Versions for this machine by name; fails if anything else stands in the lock."""
    text = (ROOT / lock).read_text()
    assert PINNED.sub("", text) == "", "neither a version nor a hash"
    return {
        match["name"]: match["version"]
        for match in PINNED.finditer(text)
        if not match["marker"] or Marker(match["marker"]).evaluate()
    }


def requirements(lines: list[str]) -> list[Requirement]:
    """Of the lines those that are for this machine, and not the project's own."""
    wanted = (Requirement(line) for line in lines)
    foreign = (each for each in wanted if each.name != "imagetasks")
    return [each for each in foreign if not each.marker or each.marker.evaluate()]


@pytest.mark.parametrize("lock", [ALL, SERVER, BUILD, AWSCLI])
def test_every_line_is_a_version_or_a_hash(lock: str) -> None:
    assert pinned(lock)


@pytest.mark.parametrize(
    ("lock", "lines"),
    [
        (ALL, [*REQUIRED, *(line for extra in EXTRAS.values() for line in extra)]),
        (ALL, PROJECT["build-system"]["requires"]),
        (SERVER, [*REQUIRED, *EXTRAS["server"], *EXTRAS["fast"]]),
        (BUILD, PROJECT["build-system"]["requires"]),
        (AWSCLI, (ROOT / "tests/awscli/requirements.in").read_text().split()),
    ],
)
def test_the_lock_satisfies_what_is_required(lock: str, lines: list[str]) -> None:
    versions = pinned(lock)
    for requirement in requirements(lines):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_npm_installs_by_hash_from_no_place_in_particular() -> None:
    client = ROOT / "clients/typescript"
    lock = json.loads((client / "package-lock.json").read_text())["packages"]
    assert "resolved" not in str(lock)
    assert [name for name, package in lock.items() if name and "integrity" not in package] == []
    # Each version is one, not a range.
    named = json.loads((client / "package.json").read_text())
    pinned_there = {**named["dependencies"], **named["devDependencies"]}
    assert {name: lock[f"node_modules/{name}"]["version"] for name in pinned_there} == pinned_there


@pytest.mark.parametrize("manifest", ["Cargo.toml", "generate/Cargo.toml"])
def test_cargo_takes_one_version_of_each(manifest: str) -> None:
    crate = tomllib.loads((ROOT / "clients/rust" / manifest).read_text())
    named = {**crate["dependencies"], **crate.get("dev-dependencies", {})}
    versions = [each if isinstance(each, str) else each["version"] for each in named.values()]
    assert all(re.fullmatch(r"=\d+\.\d+\.\d+", version) for version in versions), versions


def test_both_crates_take_the_same_version() -> None:
    own, generate = (
        tomllib.loads((ROOT / "clients/rust" / name).read_text())["dependencies"]
        for name in ("Cargo.toml", "generate/Cargo.toml")
    )
    assert {name: own[name] for name in generate if name in own} == {
        name: version for name, version in generate.items() if name in own
    }


def test_no_manifest_names_a_place_to_get_things_from() -> None:
    clients = ROOT / "clients"
    named = [
        *clients.glob("*/pom.xml"),
        *clients.glob("rust/**/Cargo.toml"),
        *clients.glob("*/package*.json"),
        *clients.glob("*/.npmrc"),
        *clients.glob("go/go.*"),
    ]
    assert len(named) == 8
    # Where Maven's schema is told apart from others; what a package says of its own authors.
    words = re.compile(
        r"<(repositories|pluginRepositories|distributionManagement)>|^\s*registry\s*=|\[(registries|source)\b"
        r"|^\s*(replace|proxy)\b|\"(resolved|publishConfig)\"|_auth|index-url",
        re.MULTILINE,
    )
    assert [str(path) for path in named if words.search(path.read_text())] == []


@pytest.mark.parametrize("lock", [SERVER, BUILD])
def test_what_is_shipped_is_what_is_tested(lock: str) -> None:
    assert pinned(lock).items() <= pinned(ALL).items()


def test_the_image_has_nothing_that_only_tests_need() -> None:
    tools = {canonicalize_name(Requirement(line).name) for line in EXTRAS["dev"] + EXTRAS["sandbox"]}
    assert not tools & set(pinned(SERVER))


def test_the_grpc_family_moves_together() -> None:
    family = {name: version for name, version in pinned(ALL).items() if name.startswith("grpcio")}
    assert len(set(family.values())) == 1, family
    # It overwrites googleapis' modules.
    assert not {"grpcio-admin", "xds-protos"} & set(pinned(ALL))


def test_what_is_installed_is_what_is_locked() -> None:
    installed: dict[str, str] = {
        canonicalize_name(match[1]): match[2]
        for place in sys.path
        for path in Path(place).glob("*.dist-info")
        if (match := re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name))
    }
    different = {
        name: (version, installed[name])
        for name, version in pinned(ALL).items()
        if name in installed and installed[name] != version
    }
    assert not different, "make installs what the lock says"
