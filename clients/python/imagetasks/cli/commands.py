"""`--exec`: a command for each task that ends, a few at a time, all finished before the program is."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from imagetasks.cli.text import printable
from imagetasks.v1 import store_image_tasks_pb2 as pb

AT_ONCE = 4


class Commands:
    """Runs a command once for each task, without a shell.

    Args:
        words: The command's words.
        tell: Prints a line for people. Called from other threads.
    """

    def __init__(self, words: Sequence[str], tell: Callable[[str], None]) -> None:
        self._words = list(words)
        self._tell = tell
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._unfinished = 0
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self.failed = 0

    def run(self, task: pb.StoreImageTaskResult) -> None:
        """Runs it for the task, soon."""
        # Before it begins: a Ctrl-C may come before `submit` returns, and finds the command under way.
        with self._lock:
            self._unfinished += 1
        self._threads.submit(self._run, task)

    def finish(self) -> None:
        """Returns when all have ended. A KeyboardInterrupt ends them."""
        try:
            with self._lock:
                waiting = self._unfinished
            if waiting:
                self._tell(f"waiting for {waiting} commands")
            self._threads.shutdown()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                # With whatever it has started.
                os.killpg(process.pid, signal.SIGTERM)
        self._threads.shutdown(cancel_futures=True)

    def _run(self, task: pb.StoreImageTaskResult) -> None:
        try:
            self._run_it(task)
        finally:
            with self._lock:
                self._unfinished -= 1

    def _run_it(self, task: pb.StoreImageTaskResult) -> None:
        name = printable(f"{self._words[0]} for {task.account}/{task.region} {task.ami_id}")
        try:
            with self._lock:
                if self._stopped:
                    return
                # Ctrl-C is ours: a command under way is let finish.
                process = subprocess.Popen(  # noqa: S603 - the user's own command
                    self._words,
                    env=dict(os.environ) | environment(task),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="backslashreplace",
                    process_group=0,
                )
                self._running.add(process)
        except OSError as error:
            self._fail(f"{name}: {error.strerror}")
            return
        with process:
            output, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        for line in output.splitlines():
            self._tell(line)
        if process.returncode:
            self._fail(f"{name}: exit code {process.returncode}")

    def _fail(self, text: str) -> None:
        with self._lock:
            self.failed += 1
        self._tell(f"imagetasks: {text}")


def environment(task: pb.StoreImageTaskResult) -> dict[str, str]:
    """The task as a command sees it."""
    told = {
        "TASK_ID": task.task_id,
        "ACCOUNT": task.account,
        "REGION": task.region,
        "AMI_ID": task.ami_id,
        "BUCKET": task.bucket,
        "OBJECT_KEY": task.s3_object_key,
        "STATE": task.ec2_store_task_state,
        "FAILURE_REASON": task.store_task_failure_reason,
    }
    # No environment can hold it.
    return {f"IMAGETASKS_{name}": value.replace("\0", "") for name, value in told.items()}
