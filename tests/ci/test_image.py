"""The Dockerfile's steps, run here: what they install serves as its header says, and checks its own health.

It needs no engine, so this proves neither the base image and its Python, nor copying between stages, nor that
an engine heeds USER and HEALTHCHECK. It needs the package registry.
"""

import contextlib
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

from canned.launch import Canned, canned
from processes import ROOT, SECONDS, free_ports

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
        building: The variables of the build: the image's, and those of this machine, as a proxy.
        environment: The image's variables and nothing more: no HOME, no user's name, no locale.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.work = root / "work"
        self.work.mkdir()
        settings = dict(shlex.split(rest)[0].split("=", 1) for rest in re.split(r"\s+(?=\w+=)", of("ENV")[0]))
        own = {name: self.here(value) for name, value in settings.items()}
        kept = {name: os.environ[name] for name in os.environ if not name.startswith(("AWS_", "IMAGETASKS_"))}
        kept.pop("PYTHONPATH", None)
        self.building = kept | own | {"PATH": own["PATH"].replace("$PATH", kept["PATH"])}
        self.environment = own | AWAY | {"PATH": own["PATH"].replace("$PATH", os.defpath)}

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
            env=self.building,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def command(self, *arguments: str) -> list[str]:
        """The image's entry point with these arguments."""
        program, *rest = json.loads(of("ENTRYPOINT")[0])
        return [self.program(program), *rest, *arguments]

    def program(self, name: str) -> str:
        """Where the image has it."""
        return str(self._root / "imagetasks/bin" / name)

    def files(self) -> dict[str, float]:
        """What the image has, and when each was written."""
        return {str(path): path.lstat().st_mtime for path in (self._root / "imagetasks").rglob("*")}

    def ran(self, *command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """One of its programs, which ended."""
        name, *arguments = command
        return subprocess.run(
            [self.program(name), *arguments],
            cwd="/",
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )


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
    assert image.ran("python", "-c", program).stdout == "[True, True, False, False]\n"
    # What runs may write nowhere, so what is not compiled by now would be at each start.
    compiled = "import imagetasks_server.main as m, os; print(os.path.isfile(m.__spec__.cached))"
    assert image.ran("python", "-c", compiled).stdout == "True\n"


@pytest.mark.timeout(INSTALL_SECONDS)
def test_what_it_leaves_out_is_said(image: Image) -> None:
    for command in (("imagetasks-sandbox",), ("imagetasks-server", "--insecure", "--sandbox")):
        done = image.ran(*command)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("pip install 'imagetasks[sandbox]'")


@pytest.mark.timeout(INSTALL_SECONDS)
def test_in_plaintext_it_does_not_start_without_being_told(image: Image) -> None:
    done = image.ran(*json.loads(of("ENTRYPOINT")[0]))
    assert done.returncode == 2
    assert done.stderr.startswith("imagetasks-server: listen: '0.0.0.0:50051' ")
    done = image.ran(*json.loads(of("ENTRYPOINT")[0]), "--insecure", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert "listens on 0.0.0.0:50051, in plaintext" in done.stdout


@contextlib.contextmanager
def served(image: Image, event: str = "serving", **more: str) -> Iterator[None]:
    """The image with --insecure, as its header has it, once it logs an event; in the end it drains."""
    known = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == event:
                known.set()

    environment = image.environment | more
    command = image.command("--insecure")
    with subprocess.Popen(command, cwd="/", env=environment, stderr=subprocess.PIPE) as process:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert known.wait(SECONDS)
            yield
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0
            reader.join()


def of_aws(ec2: Canned) -> dict[str, str]:
    return {name: value for name, value in ec2.environment("1" * 12).items() if name.startswith("AWS_")}


@pytest.mark.timeout(INSTALL_SECONDS)
def test_its_health_check_asks_it_by_its_environment_alone(image: Image) -> None:
    """It is not told of --insecure, nor of any other word of the gateway's command line."""
    (port,) = free_ports(1)
    where = {"IMAGETASKS_LISTEN": f"0.0.0.0:{port}"}
    assert image.ran(*health_check(), **where).returncode == 1
    before = image.files()
    with canned() as ec2, served(image, **where, **of_aws(ec2)):
        done = image.ran(*health_check(), **where)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        assert image.ran("imagetasks", "targets", "--endpoint-url", f"127.0.0.1:{port}").returncode == 0
        assert image.ran("imagetasks-server", "doctor", **where, **of_aws(ec2)).returncode == 0
    assert image.files() == before
    assert image.ran(*health_check(), **where).returncode == 1


@pytest.mark.timeout(INSTALL_SECONDS)
def test_without_credentials_it_is_unhealthy_and_alive(image: Image) -> None:
    (port,) = free_ports(1)
    where = {"IMAGETASKS_LISTEN": f"0.0.0.0:{port}"}
    with served(image, "no account has credentials", **where):
        done = image.ran(*health_check(), **where)
        assert (done.returncode, done.stdout, done.stderr) == (1, "NOT_SERVING\n", "")
        done = image.ran(*health_check(), "--service", "alive", **where)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
