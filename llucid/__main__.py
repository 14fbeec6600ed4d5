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
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
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
    if is_importing():
        again(number)
    elif time.monotonic() - left > 1:
        left = time.monotonic()
        sys.exit(128 + number)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt."""
    if is_importing():
        again(number)
    else:
        signal.default_int_handler(number, frame)


def is_importing() -> bool:
    """Whether a library is being imported that an exception of a signal would crash, or leave half imported."""
    specs = [getattr(sys.modules.get(name), "__spec__", None) for name in ("numpy", "torch", "jax")]
    return any(getattr(spec, "_initializing", False) for spec in specs)  # which Python's own imports look at


def again(number: int) -> None:
    """Sends a signal to this thread once more, a moment later."""
    this = _thread.get_ident()

    def send() -> None:
        time.sleep(0.01)
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(this, number)  # so that it ends the wait of a system call
        else:
            signal.raise_signal(number)

    _thread.start_new_thread(send, ())


def repeat(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeats a signal a moment later if its exception was raised where Python ignores it, as at the end of imports."""
    global left
    if isinstance(ignored.exc_value, SystemExit):
        left = float("-inf")
        again(int(str(ignored.exc_value.code)) - 128)
    elif isinstance(ignored.exc_value, KeyboardInterrupt):
        again(signal.SIGINT)
    else:
        sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    main()
