"""The garbage collector after `settle`, in a process of its own: it holds for all of one."""

import subprocess
import sys

COUNT = """
import gc, sys
sys.path[:0] = {path!r}
from imagetasks_server import collector
{settle}
before = sum(of["collections"] for of in gc.get_stats())
# As many as a change to a thousand watchers has under way.
under_way = [[] for _ in range(40_000)]
print(sum(of["collections"] for of in gc.get_stats()) - before, gc.get_freeze_count() > 0)
"""


def looks(settle: str) -> list[str]:
    program = COUNT.format(path=sys.path, settle=settle)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_objects_under_way_are_not_looked_at_and_those_of_the_start_never_again() -> None:
    assert looks("collector.settle()") == ["0", "True"]
    # What it is for.
    assert int(looks("")[0]) > 40
