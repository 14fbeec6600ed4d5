"""Machines whose cores are also used by other programs.

PyTorch's threads wait for one another by spinning. If other programs use the cores, the threads do not all run at
the same time: each spins for its whole time slice while the one it waits for does not run. Training was measured to
take 20 times as long; waiting passively costs little. OpenMP reads how to wait once, when PyTorch is imported.
"""

import os
import sys
import time
from pathlib import Path

HIGHEST_SHARE = 0.2
"""Share of the time that a thread may wait for a core before the machine counts as busy."""


def wait_passively_if_busy() -> None:
    """Has PyTorch's threads wait without spinning if other programs use the cores, and PyTorch is not imported yet.

    The environment variable OMP_WAIT_POLICY, if it is set, decides instead.
    """
    if "torch" not in sys.modules and other_load() > 0.5:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def other_load(seconds: float = 0.3) -> float:
    """How many cores other programs use, measured while this one sleeps for `seconds`; 0 where it is unknown.

    The system's load average would be simpler, but it counts programs for minutes after they have ended; and passive
    waiting makes training half as fast on a machine that is not busy.
    """
    before, begun = processor_ticks(), time.perf_counter()
    time.sleep(seconds)
    used = processor_ticks() - before
    elapsed = time.perf_counter() - begun
    return used / os.sysconf("SC_CLK_TCK") / elapsed if used > 0 else 0.0


def processor_ticks() -> int:
    """The time that all cores together have been in use, in clock ticks; 0 where it is unknown."""
    try:
        ticks = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        user, nice, system, _idle, _waiting_for_disk, *rest = map(int, ticks)
        return user + nice + system + sum(rest[:3])  # with interrupts, and what other virtual machines took
    except (OSError, ValueError):
        return 0


def waited() -> dict[str, float]:
    """For each thread of this process, the seconds in which it was ready and no core was free; {} where unknown."""
    found: dict[str, float] = {}
    try:
        for task in Path("/proc/self/task").iterdir():
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or a thread that has just ended
        pass
    return found


class Watch:
    """Measures how much of the time training waits for a core."""

    def __init__(self) -> None:
        self.before = waited()

    def share(self, seconds: float) -> float:
        """The share of the last `seconds`, since the last call, in which the thread that waited most had no core."""
        after = waited()
        longest = max((after[task] - self.before.get(task, 0.0) for task in after), default=0.0)
        self.before = after
        return min(longest / seconds, 1.0) if seconds > 0 else 0.0
