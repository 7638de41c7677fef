"""The global options that speak of the way to the gateway: TLS, credentials, time; and a slow answer."""

import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_lines import Driven, Ending
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imagetasks.v1 import store_image_tasks_pb2 as pb

COMMAND = ["ec2", "describe-store-image-tasks", "--output", "text", "--region", "eu-central-1"]
TASK = pb.StoreImageTaskResult(ami_id="ami-12345678", region="eu-central-1", account="main")
PRINTED = "STOREIMAGETASKRESULTS\tami-12345678\n"
PATIENCE = 30.0

Answer = Callable[[], object]


class Gateway:
    """One that knows one task.

    Attributes:
        address: Where it listens.
        tokens: The authorization of each call.
    """

    def __init__(self) -> None:
        self.address = ""
        self.tokens: list[str] = []
        self.before: Answer = lambda: None

    def describe(self, request: Any, context: grpc.ServicerContext) -> pb.DescribeStoreImageTasksResponse:
        del request
        metadata = dict(context.invocation_metadata())
        self.tokens.append(str(metadata.get("authorization", "")))
        self.before()
        return pb.DescribeStoreImageTasksResponse(store_image_task_results=[TASK])


@contextmanager
def serving(
    credentials: grpc.ServerCredentials | None = None, *, host: str = "127.0.0.1"
) -> Iterator[Gateway]:
    gateway = Gateway()
    method = grpc.unary_unary_rpc_method_handler(
        gateway.describe,
        request_deserializer=pb.DescribeStoreImageTasksRequest.FromString,
        response_serializer=pb.DescribeStoreImageTasksResponse.SerializeToString,
    )
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "imagetasks.v1.StoreImageTaskService", {"DescribeStoreImageTasks": method}
                )
            ]
        )
        where = f"{host}:0"
        port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
        gateway.address = f"{host}:{port}"
        server.start()
        try:
            yield gateway
        finally:
            server.stop(0).wait(PATIENCE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with key.pem and certificate.pem, of a gateway by another name."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.example")])
    now = datetime.now(UTC)
    names = [x509.DNSName("gateway.example"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (directory / "token").write_text("secret\n")
    return directory


def credentials(files: Path, *, mutual: bool = False) -> grpc.ServerCredentials:
    certificate = (files / "certificate.pem").read_bytes()
    pair = [((files / "key.pem").read_bytes(), certificate)]
    return grpc.ssl_server_credentials(pair, certificate if mutual else None, mutual)


@pytest.fixture
def run(drivers: tuple[Driven, Driven]) -> Callable[..., Ending]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))
    }

    def run(*words: str, **more: str) -> Ending:
        return drivers[1].run([*COMMAND, *words], environment | more)

    return run


def test_an_unknown_certificate_is_refused(run: Callable[..., Ending], files: Path) -> None:
    with serving(credentials(files)) as gateway:
        ending = run("--endpoint-url", f"https://{gateway.address}", "--cli-read-timeout", "20")
    assert (ending.stdout, ending.code) == ("", 255)
    assert ending.last_line.startswith(f"SSL validation failed for https://{gateway.address}/ ")


def test_no_verify_ssl_takes_what_the_server_shows(run: Callable[..., Ending], files: Path) -> None:
    with serving(credentials(files)) as gateway:
        ending = run("--endpoint-url", f"https://{gateway.address}", "--no-verify-ssl")
    assert (ending.stdout, ending.stderr, ending.code) == (PRINTED, "", 0)


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_ca_bundle_is_trusted(run: Callable[..., Ending], files: Path, *, by_environment: bool) -> None:
    bundle = str(files / "certificate.pem")
    with serving(credentials(files)) as gateway:
        url = ["--endpoint-url", f"https://{gateway.address}"]
        if by_environment:
            ending = run(*url, AWS_CA_BUNDLE=bundle)
        else:
            ending = run(*url, "--ca-bundle", bundle, AWS_CA_BUNDLE="/nonexistent")
    assert (ending.stdout, ending.stderr, ending.code) == (PRINTED, "", 0)


def test_a_certificate_of_another_name_is_refused(run: Callable[..., Ending], files: Path) -> None:
    with serving(credentials(files), host="127.0.0.2") as gateway:
        url = f"https://{gateway.address}"
        ending = run("--endpoint-url", url, "--ca-bundle", str(files / "certificate.pem"))
    assert (ending.stdout, ending.code) == ("", 255)
    assert ending.last_line.startswith(f"SSL validation failed for {url}/ ")


def test_a_client_certificate_and_a_token_are_sent(run: Callable[..., Ending], files: Path) -> None:
    with serving(credentials(files, mutual=True)) as gateway:
        ending = run(
            *("--endpoint-url", f"https://{gateway.address}", "--no-verify-ssl"),
            *("--client-certificate", str(files / "certificate.pem"), "--client-key", str(files / "key.pem")),
            *("--token-file", str(files / "token")),
        )
        assert (ending.stdout, ending.code) == (PRINTED, 0)
        assert gateway.tokens == ["Bearer secret"]


def test_no_sign_request_sends_no_token(run: Callable[..., Ending], files: Path) -> None:
    with serving() as gateway:
        words = ["--endpoint-url", gateway.address, "--token-file", str(files / "token")]
        assert run(*words).code == run(*words, "--no-sign-request").code == 0
        assert gateway.tokens == ["Bearer secret", ""]


def test_where_nobody_listens_the_error_names_the_address(run: Callable[..., Ending]) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        ending = run("--endpoint-url", address)
    assert ending == Ending("", f'\nCould not connect to the endpoint URL: "http://{address}/"\n', 255)


def test_connecting_is_given_up_after_cli_connect_timeout(run: Callable[..., Ending]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        ending = run("--endpoint-url", url, "--cli-connect-timeout", "1")
    assert ending == Ending("", f'\nConnect timeout on endpoint URL: "{url}/"\n', 255)


def test_fetching_a_certificate_is_given_up_with_connecting(run: Callable[..., Ending]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        ending = run("--endpoint-url", url, "--no-verify-ssl", "--cli-connect-timeout", "1")
    assert ending == Ending("", f'\nConnect timeout on endpoint URL: "{url}/"\n', 255)


def test_fetching_a_certificate_is_given_up_with_a_wait(drivers: tuple[Driven, Driven]) -> None:
    words = ["ec2", "wait", "store-image-task-complete", "--no-verify-ssl", "--timeout", "1"]
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        ending = drivers[1].run([*words, "--endpoint-url", url], {})
    assert ending == Ending("", f'\nConnect timeout on endpoint URL: "{url}/"\n', 255)


def test_a_call_is_given_up_after_cli_read_timeout(run: Callable[..., Ending]) -> None:
    asked = threading.Event()
    with serving() as gateway:
        gateway.before = lambda: asked.wait(PATIENCE)
        ending = run("--endpoint-url", gateway.address, "--cli-read-timeout", "1")
        asked.set()
    assert ending == Ending("", f'\nRead timeout on endpoint URL: "http://{gateway.address}/"\n', 255)


@pytest.mark.parametrize("url", ["ftp://gateway", "http://gateway/path", "http://:x"])
def test_a_malformed_endpoint_is_named(run: Callable[..., Ending], url: str) -> None:
    ending = run("--endpoint-url", url)
    assert ending.code == 255
    assert ending.last_line.startswith(f'Bad value for --endpoint-url "{url}": ')


@pytest.mark.parametrize(
    ("words", "environment", "problem"),
    [
        (["--max-age", "soon"], {}, "Bad value for --max-age soon: not a number of seconds"),
        (
            [],
            {"IMAGETASKS_EC2_PAGE_SIZE": "201"},
            "IMAGETASKS_EC2_PAGE_SIZE is not a number from 1 to 200: 201",
        ),
        ([], {"AWS_DEFAULT_OUTPUT": "yaml"}, None),
        (["--token-file", "/nonexistent"], {}, "[Errno 2] No such file or directory: '/nonexistent'"),
    ],
)
def test_what_cannot_be_used_is_named(
    run: Callable[..., Ending], words: list[str], environment: dict[str, str], problem: str | None
) -> None:
    with serving() as gateway:
        ending = run("--endpoint-url", gateway.address, *words, **environment)
    if problem is not None:
        assert ending == Ending("", f"\n{problem}\n", 255)
    else:
        assert ending.stdout == PRINTED  # --output counts more


def test_a_terminal_is_told_what_is_waited_for() -> None:
    release = threading.Event()
    ours, theirs = pty.openpty()
    with serving() as gateway:
        gateway.before = lambda: release.wait(PATIENCE)
        with subprocess.Popen(
            [sys.executable, "-m", "imagetasks", *COMMAND, "--endpoint-url", gateway.address],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
            text=True,
        ) as process:
            os.close(theirs)
            told = ""
            while "(2 s)" not in told:
                told += os.read(ours, 4096).decode()
            release.set()
            assert process.stdout is not None
            assert process.stdout.read() == PRINTED
            assert process.wait(PATIENCE) == 0
            rest = os.read(ours, 4096).decode()
        os.close(ours)
    assert f"waiting for http://{gateway.address}/ (1 s)" in told
    assert rest.endswith("\r\x1b[K")  # nothing of it stays


def test_ctrl_c_ends_with_130() -> None:
    asked, release = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        release.wait(PATIENCE)

    # A shell that starts a test run in the background lets it ignore Ctrl-C, and its children inherit that.
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from imagetasks.cli import main\nsys.exit(main())"
    )
    with serving() as gateway:
        gateway.before = wait
        with subprocess.Popen(
            [sys.executable, "-c", script, *COMMAND, "--endpoint-url", gateway.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert asked.wait(PATIENCE)
            process.send_signal(2)
            stdout, stderr = process.communicate(timeout=PATIENCE)
        release.set()
    assert (stdout, stderr, process.returncode) == ("\n", "", 130)
