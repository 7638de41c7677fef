"""--no-verify-ssl: gRPC cannot skip the verification, so it is told to trust what the server shows.

The server's own certificate is fetched first and then pinned: as the only root, under the name it has.
Whoever stands between at that moment is trusted; and an expired certificate is still refused.
"""

import socket
import ssl
import time
from typing import Any

from imagetasks import channel as channels


def leaf(endpoint: str, seconds: float | None) -> tuple[bytes, str]:
    """The server's certificate as PEM, and a name that it is good for.

    Args:
        endpoint: The gateway's, with TLS.
        seconds: For all of it; None: no limit.

    Raises:
        OSError: It cannot be fetched.
    """
    until = None if seconds is None else time.monotonic() + seconds
    target = channels.Endpoint.parse(endpoint).target
    host, _, port = target.rpartition(":")
    where = (host.strip("[]"), int(port))
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    der = _shown(anybody, where, until, binary=True)
    pem = ssl.DER_cert_to_PEM_cert(der)
    # A certificate's fields are told only of one that was verified: now it is its own root.
    pinned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pinned.check_hostname = False
    pinned.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    pinned.load_verify_locations(cadata=pem)
    return pem.encode(), _name(_shown(pinned, where, until, binary=False))


def _shown(context: ssl.SSLContext, where: tuple[str, int], until: float | None, *, binary: bool) -> Any:
    seconds = None if until is None else until - time.monotonic()
    if seconds is not None and seconds <= 0:
        raise TimeoutError("timed out")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(where, seconds) as plain,
        context.wrap_socket(plain, server_hostname=where[0]) as secure,
    ):
        return secure.getpeercert(binary_form=binary)


def _name(certificate: dict[str, Any]) -> str:
    names = [str(name) for _, name in certificate.get("subjectAltName", ())]
    names += [
        str(value) for part in certificate.get("subject", ()) for key, value in part if key == "commonName"
    ]
    if not names:
        raise OSError("the server's certificate has no name")
    return names[0].replace("*", "any", 1)
