"""Errors in the user's input, as opposed to errors in the program."""

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

PRINTABLE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
"""For `str.translate`: symbols for control characters except tab and line break, so that text controls no terminal."""
UNSEEN = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""For `str.translate` of JSON: escapes of control characters that JSON allows, and of those that reorder text."""


class LlucidError(ValueError):
    """Bad input: the message says what, where, and what to do. The command line prints it as one line and exits 2.

    It is cut to some 1,500 characters."""

    def __init__(self, message: str) -> None:
        super().__init__(_cut(message))


class NoTokenizer(LlucidError):
    """A model without a tokenizer, where text is needed."""


@contextmanager
def prefix_errors(place: Path | str) -> Generator[None]:
    """Puts `place` before the message of each LlucidError raised inside that does not mention it."""
    try:
        yield
    except LlucidError as error:
        if str(place) in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error


def check_number(name: str, value: object, whole: bool = False) -> None:
    """Raises LlucidError, naming it, for a value that is not a number, or not a whole one."""
    if not isinstance(value, Integral if whole else Real):
        raise LlucidError(f"{name}={value!r}: must be a {'whole ' if whole else ''}number")


def note(message: str) -> None:
    """Prints a line on standard error about what was done with unusual input."""
    print(f"note: {message}".translate(PRINTABLE), file=sys.stderr)


def printable_json(value: object, indent: int | None = None) -> str:
    """JSON with letters as they are, safe to print."""
    return json.dumps(value, ensure_ascii=False, indent=indent).translate(UNSEEN)


def shown(value: object) -> str:
    """A value for a message, cut to 60 characters."""
    return json.dumps(value, default=repr)[:60]


def wrong_value(values: Mapping[str, Any], key: str, expected: str) -> str:
    """The message that `key` is missing, or has another value than expected."""
    if key not in values:
        return f"{key} is missing; expected {expected}"
    return f"{key} should be {expected} and is {shown(values[key])}"


def one_line(error: Exception) -> str:
    """The error's message on one line, safe to print and cut to some 1,500 characters; for an OSError, the file and the
    reason."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    line = " ".join(message.split()).translate(PRINTABLE)
    return _cut(line)


def _cut(message: str) -> str:
    return message if len(message) <= 1503 else f"{message[:1000]} … {message[-500:]}"
