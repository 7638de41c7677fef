"""The clients of all languages say the same version and contract, and are all built, tested and played to."""

import hashlib
import json
import re
import runpy
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from imagetasks import contract
from processes import ROOT

CLIENTS = ROOT / "clients"
LANGUAGES = sorted(path.name for path in CLIENTS.iterdir() if path.is_dir())
OTHERS = [language for language in LANGUAGES if language != "python"]
SCRIPT = runpy.run_path(str(ROOT / "scripts/contract.py"))
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FINGERPRINT = hashlib.sha256(
    (ROOT / "protos/imagetasks/v1/store_image_tasks.proto").read_bytes()
).hexdigest()[:16]
MAKEFILE = (ROOT / "Makefile").read_text()

# Lines of a file that somebody has to read whole.
LONGEST = 330

# How a manifest says its version. That of Go says none.
MANIFESTS: Mapping[str, Callable[[str], object]] = {
    "package.json": lambda text: json.loads(text)["version"],
    "package-lock.json": lambda text: json.loads(text)["packages"][""]["version"],
    "Cargo.toml": lambda text: tomllib.loads(text)["package"]["version"],
    "pom.xml": lambda text: re.findall(r"<artifactId>imagetasks\S*\s*<version>([^<]+)", text)[0],
}


def test_the_script_knows_the_contract() -> None:
    assert SCRIPT["version"]() == VERSION
    assert SCRIPT["fingerprint"]() == FINGERPRINT == contract.FINGERPRINT


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_client_states_which_contract_it_speaks(language: str) -> None:
    places = [Path(place) for place in SCRIPT["CONTRACTS"] if place.startswith(f"clients/{language}/")]
    assert places, "scripts/contract.py has no line for it"
    for place in places:
        text = (ROOT / place).read_text()
        assert text == SCRIPT["contracts"]()[place], "make stubs writes it"
        assert FINGERPRINT in text
        # Python's stands in pyproject.toml alone, and is asked for.
        assert (VERSION in text) == (language != "python")


def test_manifests_have_the_version_of_the_project() -> None:
    manifests = [path for name in MANIFESTS for path in CLIENTS.glob(f"**/{name}") if not _foreign(path)]
    assert len(manifests) == 5
    versions = {str(path): MANIFESTS[path.name](path.read_text()) for path in manifests}
    assert {path: version for path, version in versions.items() if version != VERSION} == {}


def _foreign(path: Path) -> bool:
    return bool({"node_modules", "dist"} & set(path.parts))


def test_what_is_written_by_hand_stays_small() -> None:
    sources = [
        path
        for pattern in ("go/*.go", "go/cmd/**/*.go", "go/examples/**/*.go", "typescript/src/*.ts")
        for path in CLIENTS.glob(pattern)
        if not path.name.endswith("_test.go")
    ]
    assert len(sources) > 20
    lengths = {str(path): len(path.read_text().splitlines()) for path in sources}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize("language", OTHERS)
def test_a_client_has_a_page_that_begins_with_a_program(language: str) -> None:
    text = (CLIENTS / language / "README.md").read_text()
    assert re.search(r"^```\w+\n", text, re.MULTILINE)


def test_every_client_is_built_tested_and_played_to() -> None:
    (built,) = re.findall(r"^languages := (.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(built.split()) == OTHERS
    for language in OTHERS:
        assert re.search(rf"^client-{language}:", MAKEFILE, re.MULTILINE)
        assert re.search(rf"^tool_{language} := ", MAKEFILE, re.MULTILINE)
    played: dict[str, dict[str, str]] = yaml.safe_load(
        (ROOT / "tests/conformance/languages.yaml").read_text()
    )
    assert sorted(played) == LANGUAGES
    assert all(played[language]["built"] for language in OTHERS)


def test_what_ci_demands_is_all_of_them() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^make clients$", script, re.MULTILINE)
    (demanded,) = re.findall(r"^languages=(.*)$", script, re.MULTILINE)
    assert sorted(demanded.split(",")) == LANGUAGES
