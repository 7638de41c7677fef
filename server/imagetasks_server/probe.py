"""`imagetasks-server health`: asks the gateway that runs with this configuration whether it serves."""

import ipaddress
import socket
import ssl
import sys
import time
from typing import Final

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from imagetasks_server.config import ConfigError, Settings

_STATUS: Final = health_pb2.HealthCheckResponse.ServingStatus


def ask(settings: Settings, service: str, timeout: float) -> int:
    """Ask, and print the answer. Blocks.

    Args:
        settings: Those that the gateway runs with.
        service: As the health service knows it; empty: the whole process.
        timeout: Seconds for all of it.

    Returns:
        The exit status: 0 if it is SERVING, else 1.

    Raises:
        ConfigError: With these settings nobody can ask.
    """
    deadline = time.monotonic() + timeout
    target = _reachable(settings.health_listen or settings.listen)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        with _channel(settings, target, timeout) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(request, timeout=max(0.001, deadline - time.monotonic()))
    except grpc.RpcError as error:
        return _fail(f"{target}: {error.code().name}: {error.details()}")
    except OSError as error:
        return _fail(f"{target}: {error}")
    sys.stdout.write(f"{_STATUS.Name(answer.status)}\n")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _fail(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


def _reachable(listen: str) -> str:
    """Where one connects to it: an address that stands for all is loopback."""
    if listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return listen
    if not address.is_unspecified:
        return listen
    loopback = "127.0.0.1" if isinstance(address, ipaddress.IPv4Address) else "[::1]"
    return f"{loopback}:{port}"


def _channel(settings: Settings, target: str, timeout: float) -> grpc.Channel:
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if settings.health_listen is not None or settings.tls_certificate is None:
        return grpc.insecure_channel(target, options=options)
    if settings.tls_client_ca is not None:
        raise ConfigError(
            "health_listen: with tls_client_ca the gateway asks even for its health only with a certificate; "
            "set an address where it does not"
        )
    certificate = _shown(target, timeout)
    options.append(("grpc.ssl_target_name_override", _name(certificate)))
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(pem), options=options)


def _shown(target: str, timeout: float) -> bytes:
    """The certificate that is shown there, whosever it is; DER.

    Nothing is confided to whoever listens on this machine. The file may hold one that is not in force yet.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with _connect(target, timeout) as plain, context.wrap_socket(plain) as wrapped:
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


def _connect(target: str, timeout: float) -> socket.socket:
    if not target.startswith("unix:"):
        host, _, port = target.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(timeout)
    try:
        connected.connect(target.removeprefix("unix:").removeprefix("//"))
    except OSError:
        connected.close()
        raise
    return connected


def _name(certificate: bytes) -> str:
    """A name that it is good for."""
    loaded = x509.load_der_x509_certificate(certificate)
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return str(loaded.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    for name in names.get_values_for_type(x509.DNSName):
        return name.replace("*", "any")
    return str(names.get_values_for_type(x509.IPAddress)[0])
