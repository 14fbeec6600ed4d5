"""Validated numbers from a file's metadata; null counts as missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError, wrong_value


def int_of(metadata: Mapping[str, Any], key: str, place: Path, default: int | None = None) -> int:
    """The integer of at most 64 bits under `key`. Raises LlucidError, with `place` and `key`, for any other value."""
    value: Any = default if metadata.get(key) is None else metadata[key]
    if type(value) is not int or abs(value) >= 1 << 64:
        kind = "a whole number" if type(value) is not int else "below 2⁶⁴"
        raise LlucidError(f"{place}: {wrong_value(metadata, key, kind)}")
    return value


def float_of(metadata: Mapping[str, Any], key: str, place: Path, default: float | None = None) -> float:
    """The finite number under `key`. Raises LlucidError, with `place` and `key`, for any other value."""
    value: Any = default if metadata.get(key) is None else metadata[key]
    if type(value) not in (int, float) or not abs(value) < 1e300:  # excludes NaN, and integers too large for a float
        raise LlucidError(f"{place}: {wrong_value(metadata, key, 'a number')}")
    return float(value)
