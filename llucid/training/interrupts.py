"""Ctrl-C, SIGTERM and SIGHUP while a loop runs: the first one asks it to finish, a second one interrupts it. Ctrl-Z."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)
"""What a terminal sends when it closes. Windows has none."""
STOP: Any = getattr(signal, "SIGTSTP", None)
"""What Ctrl-Z sends. Windows has none."""
STOPPING = [number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None]


@contextmanager
def interruption() -> Generator[Callable[[], int]]:
    """Yields a function that returns the number of the signal that was caught, or 0.

    A second signal raises KeyboardInterrupt, unless it is SIGHUP: a session that ends sends more than one. An ignored
    signal stays ignored: SIGHUP under nohup, SIGINT in a script's background job. Outside of the main thread no signal
    is caught. After a SIGHUP, what is printed to a closed terminal is dropped: no print fails.
    """
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        if number == HANGUP:
            leave_closed_terminal()
        if caught and number != HANGUP:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    handled = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, catch) for number in handled}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_closed_terminal() -> None:
    """Redirects standard output and standard error to /dev/null, each if it is a terminal that has closed."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)


@contextmanager
def stopwatch() -> Generator[Callable[[], float]]:
    """Yields a function that returns the time in seconds, less that in which Ctrl-Z stopped this process. It counts
    outside of the main thread, where SIGTSTP is handled or ignored already, and on Windows.
    """
    lost = 0.0

    def stop(number: int, frame: object) -> None:
        nonlocal lost
        begun = time.perf_counter()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # the process stops here, until it is continued
        signal.signal(number, stop)
        lost += time.perf_counter() - begun

    in_main_thread = threading.current_thread() is threading.main_thread()
    if STOP is None or not in_main_thread or signal.getsignal(STOP) != signal.SIG_DFL:
        yield time.perf_counter
        return
    signal.signal(STOP, stop)
    try:
        yield lambda: time.perf_counter() - lost
    finally:
        signal.signal(STOP, signal.SIG_DFL)
