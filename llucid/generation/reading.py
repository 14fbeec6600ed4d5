"""Reading: new ids in, the scores of what follows out, and the context longer by them.

Prompts are read by PyTorch, which is quick at many tokens at once (reading_torch.py), and then few tokens at a time by
C (llama_c.py), which is quick at these, on the same weights and the same cache: the same equations. Of quantised
weights C reads all but long prompts too, since PyTorch turns them back first. Weights that are still as their file has
them, Mapped, are read by C alone as long as that takes less time than importing PyTorch.
"""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llucid.arrays import Mapped, Quantized
from llucid.config import NOWHERE, Config
from llucid.native.step import DecodeStep, Slots, decode_step, empty_slots
from llucid.weights import Weights, leaves

CHUNK = 512
"""Tokens of a prompt that are read at once: bounds the memory that a long prompt takes while it is read."""
FEW, FEW_QUANTISED = 24, 4096
"""Tokens, of one row or of several, that C reads in less time than PyTorch: with plain weights, with quantised ones."""
TOGETHER = 64
"""Tokens of a prompt that C reads at once."""
SCORED = 16
"""Tokens that C scores all of in less time than it takes to read the weights once more for the last of them."""
ALONE = 2**36
"""Multiplications that C does in about the time that importing PyTorch takes."""


class Context(NamedTuple):
    """What has been read: the ids of each row, and the cache of their keys and values.

    A value, as the cache is: reading returns a longer one, and shares slots with the one it grew from.
    """

    rows: tuple[tuple[int, ...], ...]
    cache: Any
    """A `llama.Cache`, or `llama_c.Slots` where C reads alone."""

    def grown(self, new: Sequence[Sequence[int]], cache: Any) -> "Context":
        """With new ids for each row, which `cache` holds too."""
        return Context(tuple((*old, *row) for old, row in zip(self.rows, new, strict=True)), cache)


Reader = Callable[
    [Weights, Config, Context, Sequence[Sequence[int]], DecodeStep | None], tuple[Float[Any, "batch vocab"], Context]
]
"""What does as `read` does, perhaps sooner: `speculation.ReadAhead`."""


def ready(
    weights: Weights, config: Config, rows: int, tokens: int, context: Context | None = None
) -> tuple[Weights, DecodeStep | None]:
    """(the weights as they are best read, the step in C or None) for so many rows, and so many tokens to read after
    those of a context, if there is one."""
    sooner = few(weights)
    step = decode_step(weights, config) if rows <= sooner else None
    helped = context is not None and not isinstance(context.cache, Slots)  # PyTorch is here already
    long = tokens > max(sooner, ALONE // config.parameters)
    if step is None or (isinstance(weights.norm, Mapped) and (helped or long)):
        with uninterrupted():
            from llucid.generation.reading_torch import tensors

        weights = tensors(weights, dense=step is None)  # once, and not for every token
        step = decode_step(weights, config) if step else None
    return weights, step


@contextmanager
def uninterrupted() -> Generator[None]:
    """Ctrl-C inside is heeded at the end: PyTorch that is imported by half cannot be imported any more, and who only
    stopped an answer goes on to ask."""
    heed = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(heed):
        yield
        return
    caught: list[Any] = []
    signal.signal(signal.SIGINT, lambda *given: caught.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heed)
    if caught:
        heed(*caught[-1])


def few(weights: Weights) -> int:
    """How many tokens C reads in less time than PyTorch."""
    return FEW_QUANTISED if any(isinstance(leaf, Quantized) for leaf in leaves(weights)) else FEW


def empty_context(weights: Weights, config: Config, rows: int, slots: int) -> Context:
    """Nothing read yet, and room for `slots` tokens a row; more is found when needed.

    Beside quantised weights, full keys and values would take a good part of the time; float16 is closer than they are.
    """
    if isinstance(weights.norm, Mapped):
        quantised = any(isinstance(leaf, Quantized) for leaf in leaves(weights))
        dtype = "float16" if quantised else weights.embedding.dtype
        return Context(((),) * rows, empty_slots(config, rows, slots, dtype))
    from llucid.generation import reading_torch

    return reading_torch.empty_context(weights, config, rows, slots)


def side_by_side(context: Context, new: Sequence[Sequence[int]]) -> tuple[Int[Any, "batch seq"], ...]:
    """The new ids of each row and their positions, padded on the right."""
    longest = max(len(row) for row in new)
    padded = [[*row, *[0] * (longest - len(row))] for row in new]
    places = [
        [*range(len(old), len(old) + len(row)), *[NOWHERE] * (longest - len(row))]
        for old, row in zip(context.rows, new, strict=True)
    ]
    if isinstance(context.cache, Slots):
        return np.array(padded, np.int64), np.array(places, np.int64)
    import torch

    device = context.cache.positions.device
    return torch.tensor(padded, device=device), torch.tensor(places, device=device)


def read(
    weights: Weights,
    config: Config,
    context: Context,
    new: Sequence[Sequence[int]],
    step: DecodeStep | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Any, "batch vocab"], Context]:
    """(the scores of what follows each row's last new id, the context with the new ids).

    Rows may have different numbers of new ids; the scores of a row that has none mean nothing. A `step` reads each
    row's last id, and all of them if they are few.
    """
    longest = max(len(row) for row in new)
    if step is None:
        from llucid.generation import reading_torch

        return reading_torch.read(weights, config, context, new, chunk)
    if longest > 1 and longest * len(new) > SCORED:
        before, new = [row[:-1] for row in new], [row[-1:] for row in new]
        if isinstance(context.cache, Slots) or longest * len(new) <= few(weights):
            for start in range(0, longest - 1, size := max(1, TOGETHER // len(new))):
                part = [row[start : start + size] for row in before]
                _, context = read_each(weights, config, context, part, step, scored=False)
        else:
            from llucid.generation import reading_torch

            _, context = reading_torch.absorb(weights, config, context, before, chunk)
    logits, context = read_each(weights, config, context, new, step)
    if logits.shape[1] == 1:
        return logits[:, 0], context
    return logits[range(len(new)), [len(row) - 1 for row in new]], context


def read_each(
    weights: Weights,
    config: Config,
    context: Context,
    new: Sequence[Sequence[int]],
    step: DecodeStep | None,
    scored: bool = True,
) -> tuple[Any, Context]:
    """`read`, all at once, with the scores [batch seq vocab] of what follows each of the new ids, unless a step is not
    to make any."""
    if not isinstance(context.cache, Slots):
        from llucid.generation import reading_torch

        return reading_torch.read_each(weights, config, context, new, step, scored)
    assert step
    tokens, positions = side_by_side(context, new)
    logits, cache = step(tokens, positions, with_room(context.cache, context.cache.length + tokens.shape[1]), scored)
    return logits, context.grown(new, cache)


def with_room(cache: Any, slots: int) -> Any:
    """The same cache with at least `slots` slots: itself if it has them, else a copy twice as long or longer."""
    capacity = cache.positions.shape[1]
    if slots <= capacity:
        return cache
    more = max(slots, 2 * capacity) - capacity
    if isinstance(cache, Slots):
        return cache.longer(more)
    from llucid.generation.reading_torch import longer

    return longer(cache, more)
