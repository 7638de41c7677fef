"""What the clients' examples react to, and what they call."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import imagetasks
from imagetasks.v1 import store_image_tasks_pb2 as pb
from processes import Gateway


@contextlib.contextmanager
def hook(answer: int = 204) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A hook, and what it was called with."""
    called: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            called.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/stored", called
        finally:
            server.shutdown()
            thread.join()


def in_progress(running: Gateway) -> pb.StoreImageTaskResult:
    """A task that goes on, of an AMI with no other: nothing else is to be waited for."""
    with imagetasks.connect_blocking(running.address) as client:
        tasks = list(client.describe())
    counts = [task.ami_id for task in tasks]
    return next(
        task
        for task in tasks
        if task.store_task_state == pb.STORE_TASK_STATE_IN_PROGRESS and counts.count(task.ami_id) == 1
    )
