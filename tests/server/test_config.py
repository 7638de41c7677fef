"""Settings: what is wrong with them is said once, by key; file, environment and command line."""

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from certificates import files

from imagetasks_server import config, event_loop, main
from imagetasks_server.config import ConfigError, Settings, load

# What is in the file, and what the message begins with after the program's name.
FILES = {
    "an unknown key": ("max_age = 5", "max_age: "),
    "an unknown key of a table": ("[budget]\nsize = 5", "budget.size: "),
    "an unknown key of an account": ('[[accounts]]\nname = "a"\nrole = "x"', "accounts.0.role: "),
    "a type that does not fit": ('default_max_age = "soon"', "default_max_age: "),
    "a table where a number is meant": ("[page_timeout]\nseconds = 3", "page_timeout: "),
    "a number out of range": ("[budget]\nreserve = 1.5", "budget.reserve: "),
    "a time of zero": ("page_timeout = 0", "page_timeout: "),
    "a time without end": ("page_timeout = inf", "page_timeout: "),
    "no number": ("default_max_age = nan", "default_max_age: "),
    "an account named twice": ('[[accounts]]\nname = "a"\n' * 2, ""),
    "no account": ("accounts = []", "accounts: "),
    "an account without name": ("[[accounts]]", "accounts.0.name: "),
    "an account's impossible name": ('[[accounts]]\nname = "a b"', "accounts.0.name: "),
    "a malformed Region": ('[[accounts]]\nname = "a"\nregions = ["Frankfurt"]', "accounts.0.regions.0: "),
    "a malformed role": ('[[accounts]]\nname = "a"\nrole_arn = "admin"', "accounts.0.role_arn: "),
    "an address others can reach": ('listen = "0.0.0.0:50051"', "listen: "),
    "a name that may be anywhere": ('listen = "gateway.example:50051"', "listen: "),
    "every address": ('listen = "[::]:50051"', "listen: "),
    "a port beyond the last": ('listen = "127.0.0.1:99999"', "listen: "),
    "a port below the first": ('listen = "127.0.0.1:-1"', "listen: "),
    "a port by its name": ('listen = "127.0.0.1:https"', "listen: "),
    "a port in other digits": ('listen = "127.0.0.1:\\u0665"', "listen: "),
    "no port": ('listen = "127.0.0.1"', "listen: "),
    "an empty port": ('listen = "127.0.0.1:"', "listen: "),
    "a port alone": ('listen = ":50051"', "listen: "),
    "IPv6 without brackets": ('listen = "::1:50051"', "listen: "),
    "IPv6 without port": ('listen = "[::1]"', "listen: "),
    "brackets around something else": ('listen = "[localhost]:50051"', "listen: "),
    "a socket without path": ('listen = "unix:"', "listen: "),
    "a socket of slashes": ('listen = "unix:///"', "listen: "),
    "a socket at a host": ('listen = "unix://run/imagetasks.sock"', "listen: "),
    "a socket with a long path": (f'listen = "unix:/{"x" * 107}"', "listen: "),
    "a scheme of gRPC's clients": ('listen = "ipv4:127.0.0.1:50051"', "listen: "),
    "a health port beyond the last": ('health_listen = "0.0.0.0:65536"', "health_listen: "),
    "health nowhere": ('health_listen = ""', "health_listen: "),
    "metrics on a socket": ('metrics_listen = "unix:/run/metrics.sock"', "metrics_listen: "),
    "metrics without port": ('metrics_listen = "127.0.0.1"', "metrics_listen: "),
    "metrics on a port in other digits": ('metrics_listen = "127.0.0.1:\\u0669"', "metrics_listen: "),
    "a heartbeat that no message can tell": ("heartbeat_interval = 1e300", "heartbeat_interval: "),
    "a time too short to count with": ("poll_interval = 1e-320", "poll_interval: "),
    "a number that C-core takes for another": (
        "[limits]\nmax_waiting_calls = 1099511627776",
        "limits.max_waiting_calls: ",
    ),
    "a rate without end": ("[budget]\nrefill = inf", "budget.refill: "),
    "a rate that is none": ("[budget]\nrefill = 1e-300", "budget.refill: "),
    "a key without certificate": ('tls_key = "{here}"', "tls_key: "),
    "a certificate without key": ('tls_certificate = "{here}"', "tls_certificate: "),
    "authorities without certificate": ('tls_client_ca = "{here}"', "tls_client_ca: "),
    "a certificate that is not there": ('tls_certificate = "/nowhere"', "tls_certificate: "),
    "authorities that are a directory": ('tls_client_ca = "/"', "tls_client_ca: "),
    "an unknown log level": ('log_level = "loud"', "log_level: "),
}


@pytest.fixture(autouse=True)
def _nothing_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("IMAGETASKS_")]:
        monkeypatch.delenv(name)

    def never(coroutine: Any) -> None:
        coroutine.close()
        raise AssertionError("it serves")

    monkeypatch.setattr(event_loop, "run", never)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "imagetasks.toml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said when it ends with 2, without the program's name."""
    assert main.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("imagetasks-server: ")
    assert "Traceback" not in err
    return err.removeprefix("imagetasks-server: ")


@pytest.mark.parametrize(("text", "begins"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("only_check", [False, True])
def test_a_file_that_is_wrong_is_refused_by_its_key(
    file: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    begins: str,
    only_check: bool,
) -> None:
    file.write_text(text.replace("{here}", str(file)))
    said = refused(capsys, "--config", str(file), *(["--check-config"] if only_check else []))
    assert said.startswith(begins)
    assert said.count("\n") == 1


def test_an_account_named_twice_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[[accounts]]\nname = "prod"\n' * 2)
    assert "'prod'" in refused(capsys, "--config", str(file))


def test_each_of_several_faults_has_its_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("page_timeout = 0\ndrain_seconds = -1\n")
    lines = refused(capsys, "--config", str(file)).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["page_timeout", "drain_seconds"]


def test_broken_toml_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('listen = "127.0.0.1:0"\naccounts = [')
    assert refused(capsys, "--config", str(file)).startswith(f"{file}: ")


def test_a_file_that_is_not_utf_8_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(b'listen = "\xff\xfe"')
    assert refused(capsys, "--config", str(file)).startswith(f"{file}: ")


def test_a_missing_file_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(capsys, "--config", str(file)) == f"{file}: no such file\n"
    monkeypatch.setenv("IMAGETASKS_CONFIG", str(file))
    assert refused(capsys) == f"{file}: no such file\n"


def test_a_directory_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--config", str(tmp_path)).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("variable", "value", "begins"),
    [
        ("IMAGETASKS_PAGE_TIMEOUT", "soon", "page_timeout: "),
        ("IMAGETASKS_BUDGET__SHARE", "2", "budget.share: "),
        ("IMAGETASKS_BUDGET__SIZE", "2", "budget.size: "),
        ("IMAGETASKS_LISTEN", "0.0.0.0:1", "listen: "),
        ("IMAGETASKS_ACCOUNTS", '[{"name": ""}]', "accounts.0.name: "),
        ("IMAGETASKS_ACCOUNTS", "prod,dev", "accounts: "),
        ("IMAGETASKS_BUDGET", "much", "budget: "),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_its_key(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    begins: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert refused(capsys).startswith(begins)


def test_the_command_line_refuses_a_plaintext_address_others_can_reach(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(capsys, "--listen", "0.0.0.0:50051")
    assert "insecure" in said
    assert main.main(["--listen", "0.0.0.0:50051", "--insecure", "--check-config"]) == 0


@pytest.mark.parametrize(
    "listen",
    [
        "127.0.0.1:0",
        "127.8.8.8:1",
        "localhost:65535",
        "[::1]:0",
        "unix:/run/imagetasks.sock",
        "unix:///run/imagetasks.sock",
        "unix:imagetasks.sock",
    ],
)
def test_what_only_this_machine_can_reach_may_be_plaintext(listen: str) -> None:
    assert Settings(listen=listen).is_local


def test_why_an_address_is_refused_is_said_by_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for address in ("127.0.0.1", "127.0.0.1:99999", "unix:"):
        assert refused(capsys, "--listen", address) == (
            f'listen: {address!r} is not as "127.0.0.1:50051", "[::1]:50051" or "unix:/run/imagetasks.sock"\n'
        )


def test_check_config_says_what_it_found(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        'listen = "127.0.0.1:6000"\n'
        '[[accounts]]\nname = "prod"\nrole_arn = "arn:aws:iam::123456789012:role/r"\n'
        'regions = ["eu-central-1"]\n'
        '[[accounts]]\nname = "dev"\nprofile = "develop"\n'
    )
    assert main.main(["--config", str(file), "--check-config"]) == 0
    out = capsys.readouterr().out
    for part in ("127.0.0.1:6000", "prod", "arn:aws:iam::123456789012:role/r", "eu-central-1", "develop"):
        assert part in out


def test_without_configuration_it_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--check-config"]) == 0
    assert "127.0.0.1:50051" in capsys.readouterr().out


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        'listen = "127.0.0.1:1"\nlog_level = "debug"\npage_timeout = 3\n'
        "[budget]\nshare = 0.25\nreserve = 0.5\n"
    )
    monkeypatch.setenv("IMAGETASKS_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("IMAGETASKS_LOG_LEVEL", "error")
    monkeypatch.setenv("IMAGETASKS_BUDGET__SHARE", "0.5")
    settings = load(str(file), listen="127.0.0.1:3", insecure=None, log_level=None)
    assert (settings.listen, settings.log_level, settings.page_timeout) == ("127.0.0.1:3", "error", 3)
    assert (settings.budget.share, settings.budget.reserve, settings.budget.capacity) == (0.5, 0.5, 50)


def test_the_environment_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("page_timeout = 3")
    monkeypatch.setenv("IMAGETASKS_CONFIG", str(file))
    assert load(None).page_timeout == 3


def test_accounts_can_be_given_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGETASKS_ACCOUNTS", '[{"name": "a"}, {"name": "b", "profile": "p"}]')
    assert [(each.name, each.profile) for each in load(None).accounts] == [("a", None), ("b", "p")]


def test_every_default_is_valid_and_every_knob_is_explained() -> None:
    source = ast.parse(inspect.getsource(config))
    for model in (node for node in source.body if isinstance(node, ast.ClassDef)):
        if model.name not in {"Settings", "BudgetSettings"}:
            continue
        for knob, after in zip(model.body, model.body[1:], strict=False):
            if isinstance(knob, ast.AnnAssign):
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, ast.unparse(knob)
    assert Settings()


def test_a_config_error_is_one_sentence_for_each_key(file: Path) -> None:
    file.write_text("drain_seconds = -1")
    with pytest.raises(ConfigError, match=r"^drain_seconds: Input should be greater than or equal to 0.001$"):
        load(str(file))


def test_check_config_reads_the_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = files(tmp_path, trustme.CA())
    own.key.chmod(0o644)
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'listen = "0.0.0.0:0"\nhealth_listen = "0.0.0.0:1"\n'
        f'tls_certificate = "{own.certificate}"\ntls_key = "{own.key}"\n'
        '[anonymous]\naccounts = ["public-*"]\n'
    )
    assert main.main(["--config", str(config), "--check-config"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("The configuration is good.\n  listens on 0.0.0.0:0, with TLS\n")
    assert "health on 0.0.0.0:1" in out
    assert err == ""
    own.key.write_text("")
    assert refused(capsys, "--config", str(config), "--check-config").startswith("tls_key: ")
