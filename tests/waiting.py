"""Waiting for other processes."""

import time
from pathlib import Path

LIMIT = 600.0
"""Seconds after which a test fails: far longer than anything takes, since the machine may be busy."""


def wait_for(path: Path) -> None:
    """Waits until the path exists."""
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
