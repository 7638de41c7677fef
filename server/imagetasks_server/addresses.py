"""Where to listen, as it is configured: an address and a port, or a Unix socket.

C-core takes more than is meant: of a port what its lowest 16 bits say, and whatever else looks like a name.
"""

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator

_PORT: Final = re.compile(r"[0-9]{1,5}")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_MAX_PATH_BYTES: Final = 107


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) >= 2**16:
        return False
    if host.startswith("[") and host.endswith("]"):
        return _is_ipv6(host[1:-1])
    return _NAME.fullmatch(host) is not None


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_socket(address: str) -> bool:
    scheme, _, path = address.partition(":")
    # Between two slashes and the third would stand a host.
    path = path.removeprefix("//") if path.startswith("///") else path
    return (
        scheme == "unix"
        and not path.startswith("//")
        and not path.endswith("/")
        and "\0" not in path
        and 0 < len(path.encode(errors="replace")) <= _MAX_PATH_BYTES
    )


def _address(address: str) -> str:
    if not _has_port(address) and not _is_socket(address):
        raise ValueError(
            f'{address!r} is not as "127.0.0.1:50051", "[::1]:50051" or "unix:/run/imagetasks.sock"'
        )
    return address


def _tcp_address(address: str) -> str:
    if address and not _has_port(address):
        raise ValueError(f'{address!r} is not as "127.0.0.1:9464"')
    return address


Address = Annotated[str, AfterValidator(_address)]
# Or nothing.
TcpAddress = Annotated[str, AfterValidator(_tcp_address)]
