"""`llucid` and `python -m llucid`: the command line, which heeds Ctrl-C while it is still being imported."""

import gc
import signal
import sys
from types import FrameType

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def main() -> None:
    """Runs the command line; Ctrl-C, wherever nothing else makes sense of it, ends with one word and status 130.

    SIGTERM and, but under nohup, SIGHUP end with status 143 and 129. Each of them leaves nothing half-written behind.
    """
    for number in ENDS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)
    try:
        from llucid.cli import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else Python looks through everything there is once more, only to leave


def leave(number: int, frame: FrameType | None) -> None:
    """Ends the program as if it had decided to; what ends a session comes more than once, and is heeded once."""
    for each in ENDS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
