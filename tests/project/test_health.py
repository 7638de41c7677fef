"""`imagetasks-server health`: asks the gateway of the same configuration, however that is protected."""

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from canned.launch import canned
from processes import ROOT, Gateway, becomes, gateway

NO_CREDENTIALS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    return kept | more


@pytest.fixture(scope="module")
def ec2() -> Iterator[dict[str, str]]:
    """The environment of a gateway of one account in one Region."""
    with canned() as running:
        asks = {
            name: value for name, value in running.environment("0" * 12).items() if name.startswith("AWS_")
        }
        accounts = [{"name": "main", "regions": ["eu-one-1"]}]
        yield environment(**asks, IMAGETASKS_ACCOUNTS=json.dumps(accounts))


def check(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "imagetasks_server", "health", *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certificate(directory: Path, *names: str) -> dict[str, str]:
    """A certificate of nobody's authority, as settings."""
    leaf = trustme.CA().issue_cert(*names)
    leaf.cert_chain_pems[0].write_to_path(directory / "own.pem")
    leaf.private_key_pem.write_to_path(directory / "own.key")
    return {
        "IMAGETASKS_TLS_CERTIFICATE": str(directory / "own.pem"),
        "IMAGETASKS_TLS_KEY": str(directory / "own.key"),
    }


def at(running: Gateway, host: str) -> str:
    return f"{host}:{running.address.rpartition(':')[2]}"


def test_it_asks_the_gateway_on_loopback(ec2: dict[str, str]) -> None:
    with gateway(environment=ec2) as running:
        # Whether the gateway may listen there was the gateway's to say, perhaps on its command line.
        for host in ("127.0.0.1", "0.0.0.0"):
            done = check(IMAGETASKS_LISTEN=at(running, host))
            assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        assert check("--listen", running.address, "--service", "").stdout == "SERVING\n"
        unknown = check("--listen", running.address, "--service", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "NOT_FOUND" in unknown.stderr


def test_it_asks_at_a_unix_socket(ec2: dict[str, str], tmp_path: Path) -> None:
    # Short, wherever the tests are: a socket's path has 107 bytes.
    address = f"unix:{os.path.relpath(tmp_path)}/s"
    if len(address) > 100:
        address = f"unix:{tmp_path}/s"
    with gateway("--listen", address, environment=ec2):
        assert check("--listen", address).stdout == "SERVING\n"


@pytest.mark.parametrize(
    "names", [("localhost",), ("gateway.example",), ("*.gateway.example",), ("10.1.2.3",)]
)
def test_with_tls_it_asks_whosever_certificate_it_is(
    ec2: dict[str, str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    settings = certificate(tmp_path, *names)
    with gateway(environment=ec2 | settings) as running:
        done = check("--listen", running.address, **settings)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


def test_a_certificate_that_went_bad_is_no_matter_of_health(ec2: dict[str, str], tmp_path: Path) -> None:
    settings = certificate(tmp_path, "localhost")
    with gateway(environment=ec2 | settings) as running:
        (tmp_path / "own.pem").write_text("")
        done = check("--listen", running.address, **settings)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")


def test_where_clients_need_certificates_it_asks_at_health_listen(
    ec2: dict[str, str], tmp_path: Path
) -> None:
    settings = certificate(tmp_path, "localhost")
    settings["IMAGETASKS_TLS_CLIENT_CA"] = settings["IMAGETASKS_TLS_CERTIFICATE"]
    done = check(**settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imagetasks-server: health_listen: ")
    settings["IMAGETASKS_HEALTH_LISTEN"] = f"127.0.0.1:{free_port()}"
    with gateway(environment=ec2 | settings):
        done = check(**settings)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


def test_without_credentials_the_gateway_is_unhealthy_until_it_has_some(tmp_path: Path) -> None:
    """And is alive all the time."""
    from imagetasks_sandbox.launch import sandbox  # noqa: PLC0415  # the rest needs none

    credentials = tmp_path / "credentials"
    with sandbox("--seed") as aws:
        given = aws.environment(environment())
        own = {name: value for name, value in given.items() if name.startswith("AWS_")}
        key, secret = own.pop("AWS_ACCESS_KEY_ID"), own.pop("AWS_SECRET_ACCESS_KEY")
        settings = environment(
            **own | NO_CREDENTIALS | {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)},
            IMAGETASKS_CHECK_CREDENTIALS_EVERY="0.2",
        )
        with gateway(environment=settings, once="listening") as running:
            done = check("--listen", running.address)
            assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")
            assert check("--listen", running.address, "--service", "alive").stdout == "SERVING\n"
            credentials.write_text(
                f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
            )
            found = functools.partial(any_event, running, "serving")
            assert becomes(found), "".join(running.log)
            assert check("--listen", running.address).stdout == "SERVING\n"
    assert any_event(running, "no account has credentials")


def any_event(running: Gateway, event: str) -> bool:
    return any(json.loads(line)["event"] == event for line in list(running.log) if line.startswith("{"))


@pytest.mark.parametrize("protected", [False, True])
def test_it_fails_where_nothing_listens(tmp_path: Path, protected: bool) -> None:
    settings = certificate(tmp_path, "localhost") if protected else {}
    done = check("--listen", "127.0.0.1:1", "--timeout", "5", **settings)
    assert done.returncode == 1
    assert done.stderr.startswith("127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for settings in ({}, certificate(tmp_path, "localhost")):
            done = check("--listen", address, "--timeout", "0.5", **settings)
            assert done.returncode == 1
            assert done.stderr.startswith(f"{address}: ")


@pytest.mark.parametrize("timeout", ["0", "soon", "-1", "inf", "nan"])
def test_a_nonsensical_time_limit_is_refused(timeout: str) -> None:
    assert check("--timeout", timeout).returncode == 2


def test_a_wrong_configuration_is_named() -> None:
    done = check(IMAGETASKS_PAGE_TIMEOUT="soon")
    assert done.returncode == 2
    assert done.stderr.startswith("imagetasks-server: page_timeout: ")
