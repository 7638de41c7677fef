import importlib.util
import os

import pytest

from imagetasks_sandbox.main import _forget_real_settings, _parser, main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "not a loopback address"),
        (["--host", "::"], "not a loopback address"),
        (["--host", "192.0.2.1"], "not a loopback address"),
        (["--host", "unix:///tmp/socket"], "no address"),
        (["--port", "65536"], "no port"),
        (["--port", "-1"], ""),
        (["--speed", "0"], "not a number above 0"),
        (["--speed", "inf"], "not a number above 0"),
        (["--speed", "nan"], "not a number above 0"),
        (["--page-size", "201"], "not a number from 1 to 200"),
        (["--page-size", "0"], "not a number from 1 to 200"),
        (["--throttle", "50"], "CAPACITY:REFILL"),
        (["--throttle", "0:1"], "CAPACITY:REFILL"),
        (["--throttle", "5:-1"], "CAPACITY:REFILL"),
        (["--throttle", "a:b"], "CAPACITY:REFILL"),
    ],
)
def test_a_bad_argument_is_refused_with_exit_code_2_and_a_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_a_loopback_address_is_taken(host: str) -> None:
    assert _parser().parse_args(["--host", host]).host == host


def test_without_arguments_the_throttle_is_that_of_ec2_and_the_world_is_empty() -> None:
    options = _parser().parse_args([])
    assert (options.throttle.capacity, options.throttle.refill) == (50, 0.5)
    assert not options.seed
    assert options.page_size == 200
    assert _parser().parse_args(["--no-throttle"]).throttle is None


def test_help_tells_the_accounts_and_how_to_see_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "arn:aws:iam::111122223333:role/imagetasks" in text
    assert "delete its bucket" in text


def test_without_its_extra_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moto" else name)
    assert main([]) == 2
    assert capsys.readouterr().err.endswith("pip install 'imagetasks[sandbox]'\n")


def test_real_settings_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os,
        "environ",
        {
            "PATH": "/bin",
            "AWS_PROFILE": "production",
            "AWS_SESSION_TOKEN": "real",
            "AWS_SECRET_ACCESS_KEY": "real",
            "AWS_SHARED_CREDENTIALS_FILE": "/home/me/.aws/credentials",
            "BOTO_CONFIG": "/home/me/.boto",
            "MOTO_ACCOUNT_ID": "999999999999",
        },
    )
    _forget_real_settings()
    assert "real" not in os.environ.values()
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN", "BOTO_CONFIG", "MOTO_ACCOUNT_ID"} & set(os.environ)
    assert os.environ["AWS_SHARED_CREDENTIALS_FILE"] == os.environ["AWS_CONFIG_FILE"] == os.devnull
    assert os.environ["PATH"] == "/bin"
