"""A file with an issuer's keys: a bad one is a bad configuration, unless it turns bad while it serves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers_stage import AUDIENCE, ISSUER, METHODS, Issuer, call, entry, known
from gateway_stage import Serve
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_server import jwks, main
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.jwks import load_keys
from processes import SECONDS, Gateway, becomes, gateway

SECRET = "a-secret-that-stands-in-the-file"
BAD = {
    "no JSON": ("{" + SECRET, "is not a JSON Web Key Set"),
    "no set": (json.dumps([SECRET]), "is not a JSON Web Key Set"),
    "no key": ('{"keys": []}', "has no public key that could be used"),
    "a shared key": (
        json.dumps({"keys": [{"kty": "oct", "k": SECRET}]}),
        "has no public key that could be used",
    ),
    "too much": (" " * (jwks.MAX_BYTES + 1), f"is larger than {jwks.MAX_BYTES} bytes"),
}
# A file that everybody sees and nobody can read, whoever runs the tests.
UNREADABLE = "/proc/self/mem"


def configuration(keys: Path | str) -> str:
    return (
        f'[jwt]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\njwks_file = "{keys}"\n'
        '[[callers]]\nname = "people"\naccounts = "*"\nclaims = { sub = "alice" }\n'
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "jwks.json"


@pytest.fixture
def config(tmp_path: Path, keys: Path) -> Path:
    file = tmp_path / "gateway.toml"
    file.write_text(configuration(keys))
    return file


def plain() -> dict[str, str]:
    return {name: each for name, each in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}


@pytest.mark.parametrize(("text", "wrong"), BAD.values(), ids=BAD)
def test_a_bad_file_is_a_bad_configuration(
    config: Path, keys: Path, capsys: pytest.CaptureFixture[str], text: str, wrong: str
) -> None:
    keys.write_text(text)
    assert main.main(["--config", str(config), "--check-config"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"imagetasks-server: jwt.jwks_file: {keys} {wrong}\n")
    keys.write_text(Issuer().jwks())
    assert main.main(["--config", str(config), "--check-config"]) == 0


def test_a_file_that_cannot_be_read_is_a_bad_configuration(config: Path, keys: Path) -> None:
    config.write_text(configuration(UNREADABLE))
    jwt: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": UNREADABLE}
    with pytest.raises(ConfigError, match=rf"^jwt\.jwks_file: {UNREADABLE}: Input/output error$"):
        load_keys(Settings(jwt=jwt).jwt)
    keys.write_text(Issuer().jwks())
    settings = Settings(jwt={**jwt, "jwks_file": str(keys)})
    # It has gone since the configuration was read.
    keys.unlink()
    with pytest.raises(ConfigError, match=rf"^jwt\.jwks_file: {keys}: No such file or directory$"):
        load_keys(settings.jwt)


def test_an_address_is_asked_only_once_a_call_needs_it() -> None:
    jwt: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://issuer.invalid/keys"}
    assert load_keys(Settings(jwt=jwt).jwt) is None
    assert load_keys(None) is None


def test_a_gateway_with_a_bad_file_ends_before_it_listens(config: Path, keys: Path) -> None:
    keys.write_text(BAD["no JSON"][0])
    done = subprocess.run(
        [sys.executable, "-m", "imagetasks_server", "--config", str(config), "--listen", "127.0.0.1:0"],
        env=plain(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    starting, said = done.stderr.splitlines()
    assert json.loads(starting)["event"] == "starting"
    assert said == f"imagetasks-server: jwt.jwks_file: {keys} is not a JSON Web Key Set"


@pytest.fixture(scope="module")
def issuers() -> tuple[Issuer, Issuer]:
    return Issuer("one"), Issuer("two")


@pytest.fixture
def running(config: Path, keys: Path, issuers: tuple[Issuer, Issuer]) -> Iterator[Gateway]:
    keys.write_text(issuers[0].jwks())
    with gateway("--sandbox", "--config", str(config), environment=plain()) as running:
        yield running


def is_believed(channel: grpc.Channel, issuer: Issuer) -> bool:
    stub: Any = StoreImageTaskServiceStub(channel)
    metadata = (("authorization", f"Bearer {issuer.token(now=time.time())}"),)
    try:
        stub.ListTargets(pb.ListTargetsRequest(), metadata=metadata, timeout=SECONDS)
    except grpc.RpcError as error:
        refused: Any = error
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        return False
    return True


def logged(running: Gateway, event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in running.log if line.startswith("{")]
    return [each for each in entries if each["event"] == event]


def test_a_reload_with_a_bad_file_is_refused_and_the_last_good_keys_stay(
    running: Gateway, config: Path, keys: Path, issuers: tuple[Issuer, Issuer]
) -> None:
    first, second = issuers
    with grpc.insecure_channel(running.address) as channel:
        # Nobody has shown a token so far: the keys of the start are the last good ones all the same.
        keys.write_text(BAD["no JSON"][0])
        assert is_believed(channel, first)

        def reported() -> bool:
            assert is_believed(channel, first)
            return bool(logged(running, "keys for tokens cannot be fetched"))

        assert becomes(reported)
        config.write_text(configuration(keys) + '[anonymous]\naccounts = "*"\n')
        running.process.send_signal(signal.SIGHUP)
        refused = "configuration cannot be used, the one before stays"
        assert becomes(lambda: logged(running, refused))
        assert logged(running, refused)[0]["text"].startswith(f"jwt.jwks_file: {keys} ")
        assert is_believed(channel, first)
        stub: Any = StoreImageTaskServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListTargets(pb.ListTargetsRequest(), timeout=SECONDS)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        keys.write_text(second.jwks())
        running.process.send_signal(signal.SIGHUP)
        assert becomes(lambda: logged(running, "configuration read again"))
        # At once: nobody waits for the next look at the file.
        assert is_believed(channel, second)
        assert not is_believed(channel, first)
    assert [each["level"] for each in logged(running, "keys for tokens fetched")] == ["info", "info"]
    assert SECRET not in "".join(running.log)


async def test_keys_that_were_read_already_are_used_and_not_read_again(
    serve: Serve, clock: VirtualClock, keys: Path
) -> None:
    issuer = Issuer()
    gateway = await serve(**{**known(keys, issuer), "callers": [entry("people", claims={"sub": "alice"})]})
    jwt: Any = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(keys)}
    published = await asyncio.to_thread(load_keys, Settings(jwt=jwt).jwt)
    gateway.gateway.gate.take_keys(published)
    await asyncio.to_thread(keys.unlink)
    answer = await call(gateway.channel, METHODS[0], issuer.token(now=clock()))
    assert answer.target_outcomes
