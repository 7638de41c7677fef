"""moto's WSGI application served on one address, quietly, until stopped."""

import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

_POLL_SECONDS = 0.1  # how late stop() may be noticed


class _QuietHandler(MotoRequestHandler):
    # Headers and body are two writes; with Nagle's algorithm the second waits 40 ms for the first one's ACK.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"  # keep connections

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Log nothing: a sandbox is not observed by its access log."""


class Server:
    """Listens from the start, answers between ``start`` and ``stop``.

    Args:
        host: A loopback address.
        port: 0: any free one; see ``port``.

    Raises:
        SystemExit: The address is in use; werkzeug has said so on stderr.
    """

    def __init__(self, host: str, port: int) -> None:
        application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, port, application, threaded=True, request_handler=_QuietHandler)
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(_POLL_SECONDS,), name="server")

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_port)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and close the listening socket."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
