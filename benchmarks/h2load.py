"""Load by h2load (Debian: nghttp2-client): a client in Python would take as much processor as the server."""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Final

from measured import METADATA

COMMAND: Final = "h2load"
SERVICE: Final = "/imagetasks.v1.StoreImageTaskService"
CONNECTIONS, AT_ONCE = 4, 8
# Any request, empty: gRPC's prefix of five bytes.
EMPTY: Final = bytes(5)


def calls_per_second(address: str, method: str, calls: int, request: bytes = EMPTY) -> float:
    """As many calls as the server can answer, one after the other on each of a few streams.

    Args:
        address: The server's.
        method: Of the contract.
        calls: How many in all.
        request: With gRPC's prefix.
    """
    with _command(address, method, calls, CONNECTIONS, AT_ONCE, request=request) as command:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{calls} succeeded" in done.stdout, done.stdout
    found = re.search(r"([\d.]+) req/s", done.stdout)
    assert found is not None
    return float(found[1])


@contextlib.contextmanager
def streams(address: str, method: str, count: int, connections: int) -> Iterator[None]:
    """So many streams that stay open as long as the context lasts; whatever comes is read and forgotten."""
    each = -(-count // connections)
    with (
        _command(address, method, count, connections, each) as command,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            yield
            assert process.poll() is None, "the streams have ended"
        finally:
            process.kill()


@contextlib.contextmanager
def _command(
    address: str, method: str, calls: int, connections: int, at_once: int, *, request: bytes = EMPTY
) -> Iterator[list[str]]:
    with tempfile.NamedTemporaryFile() as body:
        body.write(request)
        body.flush()
        command = [COMMAND, "-n", str(calls), "-c", str(connections), "-m", str(at_once), "-d", body.name]
        for name, value in (("content-type", "application/grpc"), ("te", "trailers"), *METADATA):
            command += ["-H", f"{name}: {value}"]
        yield [*command, f"http://{address}{SERVICE}/{method}"]
