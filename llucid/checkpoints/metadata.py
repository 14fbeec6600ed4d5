"""Numbers out of what a file tells of its model, by key; null is the same as nothing told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError, shown


def whole(told: Mapping[str, Any], key: str, place: Path, default: int | None = None) -> int:
    """The whole number under `key`. Raises LlucidError, with place and key, if there is something else."""
    value: Any = told.get(key)
    value = default if value is None else value
    if type(value) is not int:
        raise LlucidError(f"{place}: {key} should be a whole number and is {shown(value)}")
    return value


def real(told: Mapping[str, Any], key: str, place: Path, default: float | None = None) -> float:
    """The finite number under `key`. Raises LlucidError, with place and key, if there is something else."""
    value: Any = told.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not abs(value) < 1e300:  # nor NaN, nor an integer too large for a float
        raise LlucidError(f"{place}: {key} should be a number and is {shown(value)}")
    return float(value)
