"""What the documents say can be done, done."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagetasks_server.config import load
from processes import ROOT, gateway

README = (ROOT / "README.md").read_text()
COMMANDS = Path(sys.executable).parent


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return str(text)


def meaning(configuration: str, directory: Path) -> str:
    """What the gateway says of a good configuration."""
    config = directory / "gateway.toml"
    config.write_text(configuration)
    done = subprocess.run(
        [COMMANDS / "imagetasks-server", "--config", config, "--check-config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_its_configuration_is_good(tmp_path: Path) -> None:
    told = meaning(block("toml"), tmp_path)
    assert "account production: arn:aws:iam::123456789012:role/imagetasks" in told


def test_the_configuration_of_callers_is_good(tmp_path: Path) -> None:
    text = (ROOT / "docs/security.md").read_text()
    (configured,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    told = meaning(configured, tmp_path)
    assert "caller dashboard: accounts prod-*; Regions eu-*, us-east-1" in told
    assert "without a credential: accounts sandbox" in told


def test_its_python_prints_tasks() -> None:
    with gateway("--sandbox") as running:
        program = block("python").replace("127.0.0.1:50051", running.address)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^main [a-z0-9-]+ ami-[0-9a-f]{17} \d+$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_the_targets_it_names_are_there(document: str) -> None:
    named = set(re.findall(r"\bmake ([a-z]+)`", (ROOT / document).read_text()))
    makefile = (ROOT / "Makefile").read_text()
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_its_commands_for_the_command_line_are_understood() -> None:
    commands = re.findall(r"^(imagetasks (?:stream|targets).*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        done = subprocess.run(
            [COMMANDS / "imagetasks", *command.split()[1:]],
            env=os.environ | {"IMAGETASKS_ENDPOINT": "127.0.0.1:1"},
            capture_output=True,
            text=True,
            check=False,
        )
        # Understood; there is only no gateway.
        assert done.returncode == 3, done.stderr


def test_the_architecture_knows_every_setting_it_names() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    settings = (ROOT / "server/imagetasks_server/config.py").read_text()
    named = re.findall(r"`((?:keep|remember|confirm|distrust|drain|region|answer|full)_[a-z_]+)`", text)
    assert named
    assert {name for name in named if not re.search(rf"^    {name}: ", settings, re.MULTILINE)} == set()


def test_the_architecture_knows_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "server/imagetasks_server").glob("[a-z]*.py")}
    unnamed = {name for name in modules if f"`{name}`" not in text and not name.startswith("aws_")}
    assert unnamed == set()


def test_the_settings_that_running_tells_of_are_there(tmp_path: Path) -> None:
    text = (ROOT / "docs/running.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for path in set(re.findall(r'"(/etc/.*?)"', text)):
        (tmp_path / Path(path).name).touch()
    for written in blocks:
        config = tmp_path / "gateway.toml"
        config.write_text(written.replace("/etc/imagetasks-tls", str(tmp_path)))
        settings = load(str(config))
        assert settings.tls_client_ca or settings.health_listen
