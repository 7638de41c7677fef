"""A connection that stands but over which nothing comes any more: every client finds out, and gives it up.

As when a machine on the way has forgotten it. Who sends is told nothing, so only asking does it: keepalive.
"""

import contextlib
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processes import ROOT, Gateway, becomes, gateway

# What follows tasks for ever, in each language, behind the client's own defaults. Some take a URL.
FOLLOWING = {
    "python": [
        str(Path(sys.executable).with_name("imagetasks")),
        "watch",
        "--output",
        "json",
        "--endpoint-url",
        "",
    ],
    "go": [".build/bin/wait-and-react", "-exec", "echo ended", "-endpoint", ""],
    "typescript": [
        *("node", "clients/typescript/dist/examples/wait-and-react.js"),
        *("--exec", "echo ended", "--endpoint", ""),
    ],
    "java": ["java", "-cp", ".build/java/imagetasks.jar:.build/java/lib/*", "imagetasks.examples.Follow", ""],
    "rust": [".build/rust/debug/examples/follow", "http://"],
}
# They watch again by themselves.
THIN = {"python", "go", "typescript"}
# Seconds until a client asks whether the other side is there, and for which it waits for an answer.
SILENCE, ANSWER = 30, 10
# A busy machine is no sooner.
NOTICED = SILENCE + ANSWER + 20


class Wire:
    """Carries what a client and the gateway say to each other, until it is frozen.

    Attributes:
        address: What the client connects to.
        carried: Bytes that have come to the client over the connection of now.
        connections: How many there have been.
    """

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = 0
        self.connections = 0
        self._frozen: set[socket.socket] = set()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._given_up = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def freeze(self) -> None:
        """From now on the connections that there are carry nothing, either way; new ones do."""
        self._frozen |= self._peers.keys()
        self.carried = 0

    def given_up(self, seconds: float) -> bool:
        """Whether the client closes a frozen connection in this time."""
        return self._given_up.wait(seconds)

    def close(self) -> None:
        """End all that there is."""
        self._over.set()
        self._thread.join()
        for each in (self._listener, *self._peers):
            each.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._listener:
                        self._connect(selector)
                    else:
                        self._carry(selector, key.fileobj)  # type: ignore[arg-type]

    def _connect(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._to)
        self.connections += 1
        self._peers |= {client: server, server: client}
        for each in (client, server):
            selector.register(each, selectors.EVENT_READ)

    def _carry(self, selector: selectors.BaseSelector, source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            said = source.recv(1 << 16)
            if said and source in self._frozen:
                return
            if said:
                self._peers[source].sendall(said)
                self.carried += source.getpeername() == self._to and len(said)
                return
        # The gateway gives up what is frozen too: that is told to nobody.
        selector.unregister(source)
        if source in self._frozen:
            if source.getsockname()[1] == self._listener.getsockname()[1]:
                self._given_up.set()
        else:
            with contextlib.suppress(OSError):
                self._peers[source].shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with gateway("--sandbox", "--sandbox-speed", "20") as running:
        yield running


@pytest.mark.timeout(NOTICED * 3)
def test_every_client_gives_up_a_connection_over_which_nothing_comes(running: Gateway) -> None:
    with ThreadPoolExecutor(len(FOLLOWING)) as lanes:
        for lane in [lanes.submit(_gives_up, language, running) for language in FOLLOWING]:
            sys.stdout.write(f"\n{lane.result()}")


def _gives_up(language: str, running: Gateway) -> str:
    wire = Wire(running.address)
    *command, scheme = FOLLOWING[language]
    try:
        with subprocess.Popen(
            [*command, f"{scheme}{wire.address}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                return f"{language}: {_noticed(language, wire, process)}"
            finally:
                process.kill()
    finally:
        wire.close()


def _noticed(language: str, wire: Wire, process: "subprocess.Popen[bytes]") -> str:
    assert becomes(lambda: wire.carried > 1000), f"{language} follows nothing"
    # What it lists first is over by then.
    time.sleep(5)
    assert process.poll() is None
    before = wire.connections
    wire.freeze()
    began = time.monotonic()
    assert wire.given_up(NOTICED), f"{language} has noticed nothing"
    took = time.monotonic() - began
    # By asking, and not because it has ended. C-core may have asked just before, to learn how much fits.
    assert took > ANSWER - 1, f"{language} has gone after {took:.0f} s"
    if language in THIN:
        assert becomes(lambda: wire.connections > before and wire.carried), f"{language} does not go on"
    return f"given up after {took:.0f} s"
