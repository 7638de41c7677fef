"""The gateway as a process that knows callers: asked by the command line, with and without a token."""

import os
import subprocess
import sys
from pathlib import Path

from processes import gateway


def ask(address: str, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMAGETASKS_")}
    return subprocess.run(
        [sys.executable, "-m", "imagetasks", *words],
        env=environment | {"IMAGETASKS_ENDPOINT": address, "IMAGETASKS_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_token_of_our_command_opens_what_its_entry_says_and_is_logged_nowhere(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "imagetasks_server", "hash-token"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    token = made.stderr.split()[-1]
    config = tmp_path / "gateway.toml"
    config.write_text(f'[[callers]]\nname = "dashboard"\naccounts = "main"\nregions = "eu-*"\n{made.stdout}')
    with gateway("--sandbox", "--config", str(config)) as running:
        shown = ask(running.address, "targets", token=token)
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()[1:]
        assert lines
        assert all(line.split()[0] == "main" and line.split()[2].startswith("eu-") for line in lines)
        for sent, said in (("", "CREDENTIAL_MISSING"), (token[:-1], "CREDENTIAL_INVALID")):
            refused = ask(running.address, "targets", token=sent)
            assert refused.returncode == 3
            assert said in refused.stderr
            assert "IMAGETASKS_TOKEN" in refused.stderr
        hidden = ask(running.address, "stream", "--accounts", "images-dev", token=token)
        absent = ask(running.address, "stream", "--accounts", "images-xyz", token=token)
        assert hidden.returncode == absent.returncode == 3
        assert hidden.stderr.replace("images-dev", "") == absent.stderr.replace("images-xyz", "")
    log = "".join(running.log)
    assert "dashboard" in log
    assert token[:-1] not in log
