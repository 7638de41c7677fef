"""What takes too long for every run of the suite: a frozen peer, and ten thousand watchers at once."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_ec2 import FakeWorld
from gateway_stage import serving

from imagetasks_server.clock import steady_clock
from processes import ROOT

WATCHER = """
import sys, grpc
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    for event in StoreImageTaskServiceStub(channel).WatchStoreImageTasks(pb.WatchStoreImageTasksRequest()):
        print(event.WhichOneof("event"), flush=True)
"""


@pytest.mark.timeout(120)
async def test_a_frozen_peer_is_noticed_within_half_a_minute() -> None:
    clock = steady_clock()
    async with serving(FakeWorld(clock), clock) as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WATCHER, gateway.address, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            while await process.stdout.readline() != b"snapshot_complete\n":
                pass
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            async with asyncio.timeout(60):
                await gateway.boundary.idle()
            assert time.monotonic() - began <= 30
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.communicate()


@pytest.mark.timeout(240)
def test_ten_thousand_watchers_at_once_are_all_accepted_and_hold_little() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/fanout.py"), "10000"],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert json.loads(result.stdout) <= 40
