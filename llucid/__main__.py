"""`llucid` and `python -m llucid`: the command line, which heeds Ctrl-C while it is still being imported."""

import gc
import sys


def main() -> None:
    """Runs the command line; Ctrl-C, wherever nothing else makes sense of it, ends with one word and status 130."""
    try:
        from llucid.cli import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else Python looks through everything there is once more, only to leave


if __name__ == "__main__":
    main()
