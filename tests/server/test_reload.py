"""A new configuration on SIGHUP: what follows it, what it may not do, and that no call notices."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import trustme
from certificates import Files, files
from cryptography import x509
from scrapes import samples

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_sandbox.launch import RunningSandbox, sandbox
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.reload import Reload
from processes import SECONDS, Gateway, becomes, gateway

ROLE = "arn:aws:iam::{}:role/imagetasks"
MAIN = '[[accounts]]\nname = "main"\nregions = ["us-east-1"]\n'
PROD = f'[[accounts]]\nname = "prod"\nregions = ["us-east-1"]\nrole_arn = "{ROLE.format("444455556666")}"\n'
DEV = f'[[accounts]]\nname = "dev"\nregions = ["us-east-1"]\nrole_arn = "{ROLE.format("111122223333")}"\n'


def plain(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    return kept | more


@pytest.fixture(scope="module")
def aws() -> Iterator[RunningSandbox]:
    """An EC2 whose tasks progress."""
    with sandbox("--seed", "--no-throttle") as running:
        yield running


@pytest.fixture
def environment(aws: RunningSandbox) -> Mapping[str, str]:
    return aws.environment(plain())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(MAIN + PROD)
    return path


class Caller:
    """Watches everything and describes again and again, until told to stop."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub: Any = StoreImageTaskServiceStub(channel)
        self.answers: list[set[str]] = []
        self.watched: set[str] = set()
        self.failures: list[str] = []
        self._stopping = threading.Event()
        self._watch = self.stub.WatchStoreImageTasks(pb.WatchStoreImageTasksRequest())
        self._threads = [threading.Thread(target=each) for each in (self._describes, self._watches)]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._watch.cancel()
        for each in self._threads:
            each.join()

    def accounts(self) -> set[str]:
        """Those of the newest describe."""
        return self.answers[-1] if self.answers else set()

    def _describes(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = self.stub.DescribeStoreImageTasks(
                    pb.DescribeStoreImageTasksRequest(), timeout=SECONDS
                )
            except grpc.RpcError as error:
                self.failures.append(str(error))
                return
            self.answers.append({each.target.account for each in answer.target_outcomes})
            self.failures += [str(each) for each in answer.target_outcomes if each.status.code]

    def _watches(self) -> None:
        try:
            for event in self._watch:
                for change in event.changes.changes:
                    self.watched.add(change.task.account)
        except grpc.RpcError as error:
            if not self._stopping.is_set():
                self.failures.append(str(error))


def logged(running: Gateway, event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in running.log if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event]


def reload(running: Gateway, event: str = "configuration read again") -> dict[str, Any]:
    """Sends the signal; returns what is logged of it."""
    before = len(logged(running, event))
    running.process.send_signal(signal.SIGHUP)
    assert becomes(lambda: len(logged(running, event)) > before), "".join(running.log)
    return logged(running, event)[-1]


def ups(running: Gateway) -> dict[str, float]:
    """What the metrics say of what the gateway goes by."""
    address = logged(running, "metrics are served")[0]["address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SECONDS) as answer:
        told = samples(answer.read().decode())
    names = ("serving", "configuration_up", "certificate_up", "keys_up")
    return {name: told[f"imagetasks_{name}"] for name in names if f"imagetasks_{name}" in told}


class TestProcess:
    """The whole thing."""

    def test_accounts_come_and_go_while_calls_run_and_none_fails(
        self, config: Path, environment: Mapping[str, str]
    ) -> None:
        with (
            gateway("--config", str(config), environment=environment) as running,
            grpc.insecure_channel(running.address) as channel,
            Caller(channel) as caller,
        ):
            assert becomes(lambda: caller.accounts() == {"main", "prod"})
            for accounts, names in (
                (MAIN + PROD + DEV, {"main", "prod", "dev"}),
                (MAIN + DEV, {"main", "dev"}),
            ):
                config.write_text(accounts)
                reload(running)
                assert becomes(functools.partial(lambda wanted: caller.accounts() == wanted, names))
            assert becomes(lambda: "dev" in caller.watched)
            assert running.process.poll() is None
        assert caller.failures == []

    @pytest.mark.parametrize(
        ("text", "begins"),
        [
            ("page_timeout = 0", "page_timeout: "),
            ("accounts = [", "{config}: "),
            (MAIN + '[[accounts]]\nname = "b"\nprofile = "nobody"\n', "accounts.b: "),
            (
                MAIN + '[[organizations]]\nname = "o"\nrole_name = "r"\nprofile = "nobody"\n',
                "organizations.o: ",
            ),
            (None, "{config}: "),
        ],
    )
    def test_a_bad_file_changes_nothing_and_is_named(
        self, config: Path, environment: Mapping[str, str], text: str | None, begins: str
    ) -> None:
        with (
            gateway("--config", str(config), environment=environment) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            if text is None:
                config.unlink()
            else:
                config.write_text(text)
            refused = reload(running, "configuration cannot be used, the one before stays")
            assert refused["text"].startswith(begins.format(config=config))
            stub: Any = StoreImageTaskServiceStub(channel)
            answer = stub.DescribeStoreImageTasks(pb.DescribeStoreImageTasksRequest(), timeout=SECONDS)
            assert {each.target.account for each in answer.target_outcomes} == {"main", "prod"}
            # And a good one is taken afterwards.
            config.write_text(MAIN)
            reload(running)
            answer = stub.DescribeStoreImageTasks(pb.DescribeStoreImageTasksRequest(), timeout=SECONDS)
            assert {each.target.account for each in answer.target_outcomes} == {"main"}

    def test_what_needs_a_restart_is_named(self, config: Path, environment: Mapping[str, str]) -> None:
        with gateway("--config", str(config), environment=environment) as running:
            config.write_text("page_timeout = 3\n" + MAIN + "[budget]\nshare = 0.5\n")
            reload(running)
            told = [entry["key"] for entry in logged(running, "a setting that has changed needs a restart")]
            assert told == ["budget", "page_timeout"]

    def test_a_certificate_is_taken_at_once_and_a_bad_one_is_named(
        self, config: Path, environment: Mapping[str, str], tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        own = files(tmp_path, authority)
        keys = f'tls_certificate = "{own.certificate}"\ntls_key = "{own.key}"\n'
        config.write_text(f'metrics_listen = "127.0.0.1:0"\n{keys}{MAIN}')
        with gateway("--config", str(config), environment=environment) as running:
            assert ups(running) == {"serving": 1, "configuration_up": 1, "certificate_up": 1}
            first = logged(running, "certificate is in force")
            leaf = own.issue(authority)
            reload(running)
            told = logged(running, "certificate is in force")
            assert len(told) == len(first) + 1
            assert told[-1]["expires"] == expiry(leaf)
            own.key.write_text("")
            refused = reload(running, "configuration cannot be used, the one before stays")
            assert refused["text"].startswith("tls_key: ")
            assert running.process.poll() is None
            assert ups(running)["configuration_up"] == 0
            own.issue(authority)
            reload(running)
            assert ups(running)["configuration_up"] == 1


def expiry(leaf: trustme.LeafCert) -> str:
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).not_valid_after_utc.isoformat()


@pytest.mark.parametrize(
    ("arguments", "spoil", "begins"),
    [
        ([], lambda own: own.key.write_text(""), "tls_key: "),
        ([], lambda own: own.certificate.unlink(), "tls_certificate: "),
        (["--check-config"], lambda own: own.key.write_text(""), "tls_key: "),
    ],
)
def test_a_bad_certificate_at_the_start_ends_it_before_it_listens(
    tmp_path: Path, arguments: list[str], spoil: Callable[[Files], object], begins: str
) -> None:
    own = files(tmp_path, trustme.CA())
    spoil(own)
    done = subprocess.run(
        [sys.executable, "-m", "imagetasks_server", *arguments],
        env=plain(IMAGETASKS_TLS_CERTIFICATE=str(own.certificate), IMAGETASKS_TLS_KEY=str(own.key)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"imagetasks-server: {begins}")
    assert "serving" not in done.stderr


class TestReload:
    """All or nothing, without a process."""

    async def test_what_follows_is_prepared_before_anything_changes(self, log: list[Any]) -> None:
        steps: list[str] = []

        def prepare(settings: Settings) -> Callable[[], None]:
            steps.append(f"prepared {settings.page_timeout:g}")
            return lambda: steps.append("in force")

        async def replace(_: Settings, switch: Callable[[], None]) -> None:
            steps.append("accounts")
            switch()

        reload = Reload(Settings(), lambda: Settings(page_timeout=3), replace, [prepare], ["page_timeout"])
        assert await reload.reload()
        assert steps == ["prepared 3", "accounts", "in force"]
        assert [entry["event"] for entry in log] == ["configuration read again"]

    @pytest.mark.parametrize("fails", ["read", "prepare", "replace"])
    @pytest.mark.parametrize("error", [ConfigError("policy: no"), RuntimeError("bug")])
    async def test_nothing_is_in_force_where_one_part_refuses(
        self, log: list[Any], fails: str, error: Exception
    ) -> None:
        used: list[object] = []

        def read() -> Settings:
            if fails == "read":
                raise error
            return Settings()

        def prepare(_: Settings) -> Callable[[], None]:
            if fails == "prepare":
                raise error
            return lambda: used.append(None)

        async def replace(_: Settings, switch: Callable[[], None]) -> None:
            if fails == "replace":
                raise error
            switch()

        assert not await Reload(Settings(), read, replace, [prepare]).reload()
        assert used == []
        (refused,) = log
        assert refused["event"] == "configuration cannot be used, the one before stays"
        if isinstance(error, ConfigError):
            assert refused["text"] == "policy: no"
