"""Changes of a pass: a function for each name, whose result replaces the value.

A change is a dict, so that `{"blocks.2.attention.p": torch.zeros_like}` is one; here are those that are often made.
Several are given as a list and are made one after another.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from operator import index
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from llucid.errors import LlucidError
from llucid.look.trace import Trace, refuse_longer
from llucid.look.watch import Change


def ablate(
    layer: SupportsIndex,
    *,
    head: SupportsIndex | Sequence[SupportsIndex] | None = None,
    part: Literal["attention", "feed_forward"] | None = None,
) -> Change:
    """Zeros instead of what heads of a layer, its attention, its feed-forward, or the whole layer add to the stream."""
    if head is None:
        parts = ("attention", "feed_forward") if part is None else (part,)
        return {f"blocks.{layer}.{name}": torch.zeros_like for name in parts}
    if part == "feed_forward":
        raise LlucidError(f"head={head}: a feed-forward has no heads; leave out part=")
    given: list[Any] = [*head] if isinstance(head, Iterable) and getattr(head, "ndim", 1) else [head]
    if any(str(getattr(each, "dtype", type(each).__name__)).endswith("bool") for each in given):
        raise LlucidError(f"head={head}: expected numbers of heads, not a mask; take mask.nonzero().flatten()")
    numbers = [*map(index, given)]

    def without(heads: Tensor) -> Tensor:
        """Without some heads of [batch heads seq head_dim]."""
        for number in numbers:
            if not 0 <= number < heads.shape[1]:
                raise LlucidError(f"head={number}: this model has heads 0 to {heads.shape[1] - 1}")
        changed = heads.clone()
        changed[:, numbers] = 0
        return changed

    return {f"blocks.{layer}.attention.attention_written_out": without}


def scale(name: str, factor: float) -> Change:
    """The value `factor` times."""

    def scaled(value: Tensor) -> Tensor:
        if not (value.is_floating_point() or value.is_complex()):
            raise LlucidError(f"{name}: does not hold numbers that can be scaled")
        return value * factor

    return {name: scaled}


def patch(name: str, other: Trace, position: int | None = None) -> Change:
    """The other trace's value of this name: all of it, or of one position (`seq` in its axes).

    `name` may be a pattern: `*` is every value, `blocks.2.attention*` all of an attention. Raises LlucidError if the
    other trace has no such value, or the value has no positions.
    """
    refuse_longer(name)
    axes = {value.name: value.axes for value in other.names()}
    names = [name] if name in axes else [each for each in axes if fnmatchcase(each, name)]
    if not names:
        raise LlucidError(f"{name}: there is no value of this name in the other trace")

    without = [each for each in names if "seq" not in axes[each]]
    if position is not None and without:
        raise LlucidError(f"{without[0]}: it has no positions; leave out position={position}")

    def patched(each: str, value: Tensor) -> Tensor:
        if position is None:
            return other[each]
        changed, given, axis = value.clone(), other[each], axes[each].index("seq")
        for tensor in (changed, given):
            if not -tensor.shape[axis] <= position < tensor.shape[axis]:
                raise LlucidError(f"position={position}: {each} has positions 0 to {tensor.shape[axis] - 1}")
        here, there = changed.select(axis, position), given.select(axis, position)
        if here.shape != there.shape:
            sizes = [" x ".join(map(str, each.shape)) for each in (there, here)]
            raise LlucidError(f"position={position}: {each} has {sizes[0]} numbers there and {sizes[1]} here")
        here.copy_(there)
        return changed

    return {each: partial(patched, each) for each in names}


def zero_frequency(pair: int) -> Change:
    """RoPE's frequency of this pair of numbers set to 0, in every layer, so that it tells no positions apart."""

    def stopped(theta: Tensor) -> Tensor:
        if not 0 <= pair < len(theta):
            raise LlucidError(f"pair={pair}: this model has pairs 0 to {len(theta) - 1}")
        changed = theta.clone()
        changed[pair] = 0
        return changed

    return {"theta": stopped}
