"""The clients that are stubs, on the gateway with its sandbox: their READMEs' programs and their examples."""

import re
import subprocess
import textwrap
from collections.abc import Iterator

import pytest

import imagetasks
from processes import ROOT, SECONDS, Gateway, gateway

JAVA = ["java", "-cp", ".build/java/imagetasks.jar:.build/java/lib/*"]
RUST = ".build/rust/debug/examples"
# The directory, README's program in what is built, how to run it and the example, what is before an address.
LANGUAGES = {
    "java": (
        "src/main/java/imagetasks/examples/First.java",
        [*JAVA, "imagetasks.examples.First"],
        [*JAVA, "imagetasks.examples.Follow"],
        "",
    ),
    "rust": ("examples/first.rs", [f"{RUST}/first"], [f"{RUST}/follow"], "http://"),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with gateway("--sandbox", "--sandbox-speed", "20") as running:
        yield running


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_program_of_the_readme_is_what_runs(language: str, running: Gateway) -> None:
    source, first, _, scheme = LANGUAGES[language]
    client = ROOT / "clients" / language
    program = re.findall(
        rf"^```{language}\n(.*?)^```", (client / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )[0]
    indent = "    " if language == "java" else ""
    assert textwrap.indent(program, indent) in (client / source).read_text()
    done = subprocess.run(
        [*first, f"{scheme}{running.address}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    with imagetasks.connect_blocking(running.address) as gateway_client:
        known = {(task.account, task.region, task.ami_id) for task in gateway_client.describe()}
    said = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
    assert said
    assert said <= known


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_lists_then_follows(language: str, running: Gateway) -> None:
    _, _, follow, scheme = LANGUAGES[language]
    with subprocess.Popen(
        [*follow, f"{scheme}{running.address}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        kinds = []
        while "MODIFIED" not in kinds:
            line = process.stdout.readline()
            assert line, "it has ended"
            kinds.append(line.split()[0])
        process.kill()
    assert kinds[0] == "LISTED"
    assert set(kinds) <= {"LISTED", "ADDED", "MODIFIED", "REMOVED"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_wrong_is_said_with_its_reason(language: str, running: Gateway) -> None:
    _, _, follow, scheme = LANGUAGES[language]
    done = subprocess.run(
        [*follow, f"{scheme}{running.address}", "xx-nowhere-1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"^follow: UNKNOWN_REGION: ", done.stderr, re.MULTILINE)
