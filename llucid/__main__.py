"""`llucid` and `python -m llucid`: the command line, with signals handled from the first import on."""

import _thread
import gc
import signal
import sys
import time
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
left = float("-inf")
"""When `leave` exited last; something may have caught that."""


def main() -> None:
    """Runs the command line. Ctrl-C that nothing else handles prints one word and exits with status 130.

    SIGTERM exits with status 143, SIGHUP (except under nohup) with 129. Neither leaves anything half-written.
    """
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)
    sys.unraisablehook = repeat
    try:
        from llucid.cli import main

        main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one changes nothing
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else Python collects garbage in all of memory before it exits


def leave(number: int, frame: FrameType | None) -> None:
    """Exits normally, so that files are cleaned up. Others within a second, as when a session ends, change nothing."""
    global left
    if time.monotonic() - left > 1:
        left = time.monotonic()
        sys.exit(128 + number)


def repeat(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeats a signal a moment later if its exception was raised where Python ignores it, as at the end of imports."""
    global left
    if isinstance(ignored.exc_value, SystemExit):
        number, left = int(str(ignored.exc_value.code)) - 128, float("-inf")
    elif isinstance(ignored.exc_value, KeyboardInterrupt):
        number = signal.SIGINT
    else:
        sys.__unraisablehook__(ignored)
        return
    this = _thread.get_ident()

    def again() -> None:
        time.sleep(0.01)
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(this, number)  # so that it ends the wait of a system call
        else:
            signal.raise_signal(number)

    _thread.start_new_thread(again, ())


if __name__ == "__main__":
    main()
