"""Validated numbers from a file's metadata; null counts as missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError, wrong_value


def int_of(metadata: Mapping[str, Any], key: str, place: Path, default: int | None = None) -> int:
    """The integer under `key`. Raises LlucidError, with `place` and `key`, for any other value."""
    value: Any = default if metadata.get(key) is None else metadata[key]
    if type(value) is not int:
        raise LlucidError(f"{place}: {wrong_value(metadata, key, 'a whole number')}")
    return value


def float_of(metadata: Mapping[str, Any], key: str, place: Path, default: float | None = None) -> float:
    """The finite number under `key`. Raises LlucidError, with `place` and `key`, for any other value."""
    value: Any = default if metadata.get(key) is None else metadata[key]
    if type(value) not in (int, float) or not abs(value) < 1e300:  # excludes NaN, and integers too large for a float
        raise LlucidError(f"{place}: {wrong_value(metadata, key, 'a number')}")
    return float(value)
