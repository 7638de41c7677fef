"""`imagetasks-server` as a process: how it starts, how it ends, and whose credentials it uses."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from certificates import files
from grpc_health.v1 import health_pb2, health_pb2_grpc

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks_sandbox.launch import RunningSandbox, sandbox
from processes import SECONDS, Gateway, becomes, children, ends, gateway

COMMAND = (sys.executable, "-m", "imagetasks_server")


def plain(**more: str) -> dict[str, str]:
    """This process's environment without settings of the gateway or of AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    return kept | more


@contextlib.contextmanager
def channel(running: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.address) as channel:
        yield channel


def targets(running: Gateway, **request: Any) -> pb.ListTargetsResponse:
    with channel(running) as to_it:
        stub: Any = StoreImageTaskServiceStub(to_it)
        response: pb.ListTargetsResponse = stub.ListTargets(pb.ListTargetsRequest(**request), timeout=SECONDS)
        return response


def describe(running: Gateway, **request: Any) -> pb.DescribeStoreImageTasksResponse:
    with channel(running) as to_it:
        stub: Any = StoreImageTaskServiceStub(to_it)
        response: pb.DescribeStoreImageTasksResponse = stub.DescribeStoreImageTasks(
            pb.DescribeStoreImageTasksRequest(**request), timeout=SECONDS
        )
        return response


def events(running: Gateway) -> list[str]:
    return [json.loads(line)["event"] for line in running.log if line.startswith("{")]


def drains(running: Gateway) -> bool:
    return any("draining" in line for line in running.log)


@pytest.fixture(scope="module")
def aws() -> Iterator[RunningSandbox]:
    """An EC2 whose tasks stand still."""
    with sandbox("--seed", "--no-throttle", "--speed", "0.001") as running:
        yield running


class TestStart:
    """What is wrong is said once, with exit status 2."""

    def test_a_configuration_that_is_wrong_is_said_in_one_line(self, tmp_path: Path) -> None:
        file = tmp_path / "wrong.toml"
        file.write_text("max_age = 5")
        done = subprocess.run(
            [*COMMAND, "--config", str(file)], env=plain(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "imagetasks-server: max_age: Extra inputs are not permitted\n"

    def test_a_port_in_use_is_said_and_never_shared(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            done = subprocess.run(
                [*COMMAND, "--listen", address], env=plain(), capture_output=True, text=True, check=False
            )
        assert done.returncode == 2
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("imagetasks-server: ")]
        assert said.startswith(f"imagetasks-server: listen: cannot listen on {address}")
        assert "Traceback" not in done.stderr

    def test_a_profile_that_does_not_exist_is_said(self, tmp_path: Path) -> None:
        file = tmp_path / "profile.toml"
        file.write_text('[[accounts]]\nname = "prod"\nprofile = "nobody"\n')
        done = subprocess.run(
            [*COMMAND, "--config", str(file), "--listen", "127.0.0.1:0"],
            env=plain(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "imagetasks-server: accounts.prod: " in done.stderr
        assert "nobody" in done.stderr
        assert "Traceback" not in done.stderr

    def test_two_gateways_do_not_share_a_port(self, aws: RunningSandbox) -> None:
        with gateway(environment=aws.environment(plain())) as first:
            done = subprocess.run(
                [*COMMAND, "--listen", first.address], env=plain(), capture_output=True, check=False
            )
            assert done.returncode == 2


class TestHandshakes:
    """What C-core itself says."""

    @pytest.mark.parametrize(("verbosity", "is_told"), [(None, False), ("INFO", True)])
    def test_one_that_fails_is_told_of_only_where_that_is_asked_for(
        self, aws: RunningSandbox, tmp_path: Path, verbosity: str | None, *, is_told: bool
    ) -> None:
        own = files(tmp_path, trustme.CA())
        environment = aws.environment(
            plain(IMAGETASKS_TLS_CERTIFICATE=str(own.certificate), IMAGETASKS_TLS_KEY=str(own.key))
        )
        environment.pop("GRPC_VERBOSITY", None)
        if verbosity is not None:
            environment["GRPC_VERBOSITY"] = verbosity
        with gateway(environment=environment) as running:
            host, _, port = running.address.rpartition(":")
            with socket.create_connection((host, int(port)), SECONDS) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
                # It ends once the handshake has failed.
                assert stranger.recv(100) == b""
        assert any("Handshake failed" in line for line in running.log) is is_told
        assert all(line.startswith("{") for line in running.log) is not is_told

    def test_the_command_says_so_before_grpc_is_imported(self) -> None:
        program = (
            "import importlib.metadata as m, sys\n"
            "(command,) = m.entry_points(group='console_scripts', name='imagetasks-server')\n"
            "command.load()\n"
            "sys.exit('grpc' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestEnd:
    """Signals, and calls that are under way when they come."""

    def test_sigterm_drains_and_takes_the_sandbox_along(self) -> None:
        with gateway("--sandbox", environment=plain()) as running:
            (child,) = children(running.process.pid)
            assert len(targets(running).targets) > 30
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(SECONDS) == 0
            assert ends(child)
        assert events(running)[-2:] == ["draining", "stopped"]

    def test_a_stream_under_way_keeps_it_until_it_ends_or_time_is_up(self, aws: RunningSandbox) -> None:
        for drain, leaves_by_itself in (("600", False), ("0.1", True)):
            environment = aws.environment(plain(IMAGETASKS_DRAIN_SECONDS=drain))
            with gateway(environment=environment) as running, channel(running) as to_it:
                stub: Any = health_pb2_grpc.HealthStub(to_it)
                watch = stub.Watch(health_pb2.HealthCheckRequest())
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
                running.process.send_signal(signal.SIGINT)
                assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
                assert becomes(functools.partial(drains, running))
                if not leaves_by_itself:
                    assert running.process.poll() is None
                    watch.cancel()
                assert running.process.wait(SECONDS) == 0

    def test_a_second_signal_ends_it_at_once(self, aws: RunningSandbox) -> None:
        environment = aws.environment(plain(IMAGETASKS_DRAIN_SECONDS="600"))
        with gateway(environment=environment) as running, channel(running) as to_it:
            stub: Any = health_pb2_grpc.HealthStub(to_it)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            next(watch)
            running.process.send_signal(signal.SIGTERM)
            assert becomes(functools.partial(drains, running))
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(SECONDS) == -signal.SIGTERM

    def test_a_sandbox_that_dies_ends_the_gateway(self) -> None:
        with gateway("--sandbox", environment=plain()) as running:
            (child,) = children(running.process.pid)
            os.kill(child, signal.SIGKILL)
            running.process.wait(SECONDS)
        assert "sandbox ended by itself" in events(running)


class TestCredentials:
    """The ambient chain, and that the sandbox never leaves itself."""

    def test_the_ambient_environment_is_used(self, aws: RunningSandbox) -> None:
        with gateway(environment=aws.environment(plain())) as running:
            found = targets(running)
            assert {each.target.account for each in found.targets} == {"default"}
            assert {each.target.account_id for each in found.targets} == {"123456789012"}
            assert [each.target.region for each in found.targets] == sorted(aws.ready["regions"])
            assert describe(running, regions=["us-east-1"]).store_image_task_results

    def test_each_service_may_have_an_address_of_its_own(self, aws: RunningSandbox) -> None:
        environment = aws.environment(plain())
        endpoint = environment.pop("AWS_ENDPOINT_URL")
        environment |= {"AWS_ENDPOINT_URL_EC2": endpoint, "AWS_ENDPOINT_URL_STS": endpoint}
        with gateway(environment=environment) as running:
            assert describe(running, regions=["us-east-1"]).store_image_task_results

    def test_profiles_and_roles_are_used_as_configured(self, aws: RunningSandbox, tmp_path: Path) -> None:
        environment = aws.environment(plain())
        key, secret = environment.pop("AWS_ACCESS_KEY_ID"), environment.pop("AWS_SECRET_ACCESS_KEY")
        (tmp_path / "aws").write_text(
            f"[profile base]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
            "region = eu-west-1\n"
            "[profile prod]\nrole_arn = arn:aws:iam::444455556666:role/imagetasks\nsource_profile = base\n"
        )
        (tmp_path / "gateway.toml").write_text(
            '[[accounts]]\nname = "plain"\nprofile = "base"\nregions = ["us-east-1"]\n'
            '[[accounts]]\nname = "by-role"\nprofile = "base"\nregions = ["us-east-1"]\n'
            'role_arn = "arn:aws:iam::111122223333:role/imagetasks"\n'
            '[[accounts]]\nname = "by-profile"\nprofile = "prod"\nregions = ["us-east-1"]\n'
            '[[accounts]]\nname = "denied"\nprofile = "base"\nregions = ["us-east-1"]\n'
            'role_arn = "arn:aws:iam::999999999999:role/imagetasks"\n'
        )
        environment["AWS_CONFIG_FILE"] = str(tmp_path / "aws")
        with gateway("--config", str(tmp_path / "gateway.toml"), environment=environment) as running:
            ids = {each.target.account: each.target.account_id for each in targets(running).targets}
            assert ids == {
                "plain": "123456789012",
                "by-role": "111122223333",
                "by-profile": "444455556666",
                "denied": "",
            }
            found = describe(running)
            assert {task.account for task in found.store_image_task_results} == {
                "plain",
                "by-role",
                "by-profile",
            }

    def test_without_any_credentials_it_answers_and_says_so(self) -> None:
        environment = plain(
            AWS_CONFIG_FILE=os.devnull,
            AWS_SHARED_CREDENTIALS_FILE=os.devnull,
            AWS_EC2_METADATA_DISABLED="true",
        )
        with gateway(environment=environment, once="listening") as running:
            with pytest.raises(grpc.RpcError) as caught:
                describe(running)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            # Health says NOT_SERVING as long as that is so, and the log nothing else.
            assert becomes(lambda: "no account has credentials" in events(running))
        assert "serving" not in events(running)

    def test_the_sandbox_never_uses_what_the_environment_has(self, tmp_path: Path) -> None:
        betrayed = tmp_path / "betrayed"
        (tmp_path / "aws").write_text(
            f"[default]\ncredential_process = touch {betrayed}\n"
            f"[profile prod]\ncredential_process = touch {betrayed}\n"
            "[services s]\nec2 =\n  endpoint_url = http://127.0.0.1:9\n"
        )
        with outside() as (address, visits):
            environment = plain(
                AWS_ACCESS_KEY_ID="AKIAREALREALREALREAL",
                AWS_SECRET_ACCESS_KEY="real",
                AWS_SESSION_TOKEN="real",
                AWS_PROFILE="prod",
                AWS_DEFAULT_PROFILE="prod",
                AWS_CONFIG_FILE=str(tmp_path / "aws"),
                AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "aws"),
                AWS_ROLE_ARN="arn:aws:iam::123456789012:role/real",
                AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "aws"),
                AWS_CONTAINER_CREDENTIALS_FULL_URI=address,
                AWS_REGION="eu-west-3",
                AWS_DEFAULT_REGION="eu-west-3",
                AWS_ENDPOINT_URL=address,
                AWS_ENDPOINT_URL_EC2=address,
                AWS_ENDPOINT_URL_STS=address,
                AWS_ENDPOINT_URL_S3=address,
                AWS_IGNORE_CONFIGURED_ENDPOINT_URLS="true",
                AWS_USE_FIPS_ENDPOINT="true",
                AWS_USE_DUALSTACK_ENDPOINT="true",
                AWS_EC2_METADATA_SERVICE_ENDPOINT=address,
                AWS_CA_BUNDLE=str(tmp_path / "none.pem"),
                HTTP_PROXY=address,
                HTTPS_PROXY=address,
                http_proxy=address,
                https_proxy=address,
                # gRPC's clients and tests of it must reach the gateway all the same.
                no_grpc_proxy="127.0.0.1",
            )
            with gateway("--sandbox", environment=environment) as running:
                found = targets(running)
                assert {each.target.account for each in found.targets} == {
                    "main",
                    "images-dev",
                    "images-prod",
                }
                assert describe(running, accounts=["main"], regions=["us-east-1"]).store_image_task_results
            assert visits == []
        assert not betrayed.exists()
        assert "REAL" not in "".join(running.log)


@contextlib.contextmanager
def outside() -> Iterator[tuple[str, list[str]]]:
    """An address that nobody may ask, and who did."""
    visits: list[str] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def note() -> None:
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = listener.accept()
                    with visitor:
                        visits.append(visitor.recv(4096).decode(errors="replace"))

        thread = threading.Thread(target=note)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", visits
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
