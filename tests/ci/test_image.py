"""The Dockerfile's steps, run here: what they install serves, and checks its own health.

It needs no engine, so this proves neither the base image and its Python, nor copying between stages, nor that
an engine heeds USER and HEALTHCHECK. It needs the package registry.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import ROOT, SECONDS

INSTALL_SECONDS = 600.0
WHERE = {"/opt/imagetasks": "imagetasks", "/opt/build": "build"}
AWAY = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each in one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name]


def health_check() -> list[str]:
    return list(json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2]))


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


class Image:
    """What the build has made, below a directory.

    Attributes:
        work: The build's working directory.
        environment: The image's variables.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.work = root / "work"
        self.work.mkdir()
        settings = dict(shlex.split(rest)[0].split("=", 1) for rest in re.split(r"\s+(?=\w+=)", of("ENV")[0]))
        kept = {name: os.environ[name] for name in os.environ if not name.startswith(("AWS_", "IMAGETASKS_"))}
        kept.pop("PYTHONPATH", None)
        self.environment = kept | {name: self.here(value) for name, value in settings.items()} | AWAY
        self.environment["PATH"] = self.environment["PATH"].replace("$PATH", os.environ["PATH"])

    def here(self, text: str) -> str:
        for path, name in WHERE.items():
            text = text.replace(path, str(self._root / name))
        return text

    def copy(self, rest: str) -> None:
        if rest.startswith("--from="):
            return
        *sources, target = rest.split()
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(ROOT / source, self.work / target, ignore=ignored)
            else:
                shutil.copy(ROOT / source, self.work / target)

    def run(self, rest: str) -> None:
        # The Python that the base image would have.
        command = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", self.here(rest))
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def command(self, *arguments: str) -> list[str]:
        """The image's entry point with these arguments."""
        program, *rest = json.loads(of("ENTRYPOINT")[0])
        return [str(self._root / "imagetasks/bin" / program), *rest, *arguments]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = Image(tmp_path_factory.mktemp("image"))
    for name, rest in instructions():
        if name == "COPY":
            made.copy(rest)
        elif name == "RUN":
            made.run(rest)
    return made


def test_what_is_copied_is_let_through_to_the_build() -> None:
    let_through = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    copied = {source for rest in of("COPY") if "--from" not in rest for source in rest.split()[:-1]}
    assert copied == set(let_through)


@pytest.mark.timeout(INSTALL_SECONDS)
def test_it_has_what_it_runs_and_nothing_to_install_more_with(image: Image) -> None:
    program = (
        "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('grpc', 'uvloop', 'pip', 'moto')])"
    )
    python = Path(image.command()[0]).with_name("python")
    done = subprocess.run(
        [python, "-c", program], env=image.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[True, True, False, False]\n"


@pytest.mark.timeout(INSTALL_SECONDS)
def test_in_plaintext_it_does_not_start_without_being_told(image: Image) -> None:
    done = subprocess.run(
        image.command(), env=image.environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 2
    assert done.stderr.startswith("imagetasks-server: listen: 0.0.0.0:50051 ")
    done = subprocess.run(
        image.command("--insecure", "--check-config"),
        env=image.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "listens on 0.0.0.0:50051, in plaintext" in done.stdout


@pytest.fixture
def served(image: Image) -> Iterator[str]:
    """Where it serves, without AWS."""
    addresses: list[str] = []
    known = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            entry = json.loads(line)
            if entry["event"] == "serving":
                addresses.append(entry["address"])
                known.set()

    command = image.command("--listen", "127.0.0.1:0")
    with subprocess.Popen(command, env=image.environment, stderr=subprocess.PIPE) as process:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert known.wait(SECONDS)
            yield addresses[0]
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0
            reader.join()


@pytest.mark.timeout(INSTALL_SECONDS)
def test_its_health_check_asks_it(image: Image, served: str) -> None:
    program, *arguments = health_check()
    path = str(Path(image.command()[0]).with_name(program))
    environment = image.environment | {"IMAGETASKS_LISTEN": served}
    done = subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, check=False)
    # There are no credentials here.
    assert (done.returncode, done.stdout, done.stderr) == (1, "NOT_SERVING\n", "")
    alive = subprocess.run(
        [path, *arguments, "--service", "alive"], env=environment, capture_output=True, text=True, check=False
    )
    assert (alive.returncode, alive.stdout) == (0, "SERVING\n")
