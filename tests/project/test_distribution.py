"""What is checked in and what is shipped."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import imagetasks
from processes import ROOT

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

# Put together here, so that this file does not find itself.
MACHINE_PATHS = (str(ROOT), *(f"/{name}/" for name in ("work", "root")))
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("npmjs", "org"),
        ("maven", "org"),
    )
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = place.iterdir()
    return zipfile.ZipFile(path)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = listed.stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {needle}"
        for path in tracked()
        for needle in MACHINE_PATHS + REGISTRY_HOSTS
        if needle.encode() in path.read_bytes()
    ]
    assert not found


def test_the_version_is_stated_once() -> None:
    assert imagetasks.__version__ == VERSION
    literal = re.compile(rf"""["']{re.escape(VERSION)}["']""")
    packages = [ROOT / "clients/python", ROOT / "server", ROOT / "sandbox", ROOT / "scripts"]
    modules = [path for package in packages for path in package.rglob("*.py")]
    assert not [path for path in modules if literal.search(path.read_text())]


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == VERSION


def test_the_wheel_has_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    roots = {name.partition("/")[0] for name in wheel.namelist()}
    assert roots == {
        "imagetasks",
        "imagetasks_server",
        "imagetasks_sandbox",
        f"imagetasks-{VERSION}.dist-info",
    }


@pytest.mark.parametrize(
    "name",
    [
        "imagetasks/py.typed",
        "imagetasks/v1/store_image_tasks_pb2.py",
        "imagetasks/v1/store_image_tasks_pb2.pyi",
        "imagetasks/v1/store_image_tasks_pb2_grpc.pyi",
        "imagetasks/v1/store_image_tasks.protoset",
        f"imagetasks-{VERSION}.dist-info/licenses/LICENSE",
    ],
)
def test_the_wheel_ships(name: str, wheel: zipfile.ZipFile) -> None:
    assert name in wheel.namelist()


def test_the_image_is_built_from_what_it_is_given() -> None:
    given = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == given
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []
