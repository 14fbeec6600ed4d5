"""What is said to the user when something is wrong with the input rather than with the program."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PRINTABLE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
"""Pictures of the control characters but tab and line break, so that what a file says steers no terminal."""


class LlucidError(ValueError):
    """Bad input: the message says what, where, and what to do. The command line prints it as one line and exits 2."""


@contextmanager
def prefix_errors(place: Path) -> Generator[None]:
    """Inside, a LlucidError that does not say where tells of `place`."""
    try:
        yield
    except LlucidError as error:
        if str(place) in str(error):
            raise
        raise LlucidError(f"{place}: {error}") from error


def shown(value: object) -> str:
    """A value in a message, cut short."""
    return json.dumps(value, default=repr)[:60]


def one_line(error: Exception) -> str:
    """The error's message, as a terminal may show it; of one of the system's, the file and the reason."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(said.split()).translate(PRINTABLE)
