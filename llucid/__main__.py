"""`llucid` and `python -m llucid`: the command line, with signals handled from the first import on."""

import gc
import signal
import sys
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def main() -> None:
    """Runs the command line. Ctrl-C that nothing else handles prints one word and exits with status 130.

    SIGTERM exits with status 143, SIGHUP (except under nohup) with 129. Neither leaves anything half-written.
    """
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)
    try:
        from llucid.cli import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else Python collects garbage in all of memory before it exits


def leave(number: int, frame: FrameType | None) -> None:
    """Exits normally, so that files are cleaned up; a second signal, as when a session ends, changes nothing."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
