"""Reading by PyTorch: many tokens at a time, on any device; and what C reads of its weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llucid.arrays import Mapped, Quantized
from llucid.config import NOWHERE, Config
from llucid.generation.reading import CHUNK, Context, side_by_side, with_room
from llucid.llama import Cache, empty_cache, hidden, llama, unembed
from llucid.native.step import DecodeStep
from llucid.weights import Weights, dequantize, leaves, to


def tensors(weights: Weights, dense: bool = False) -> Weights:
    """Mapped weights as tensors, on the same memory where their dtype is the embedding's, else in that dtype, as `load`
    has it; `dense`, quantised ones as what they stand for."""
    if isinstance(weights.norm, Mapped):
        weights = to(weights, getattr(torch, weights.dtype))
    return dequantize(weights) if dense else weights


@torch.inference_mode()
def empty_context(weights: Weights, config: Config, rows: int, slots: int) -> Context:
    """`reading.empty_context`."""
    dtype = torch.float16 if any(isinstance(leaf, Quantized) for leaf in leaves(weights)) else None
    return Context(((),) * rows, empty_cache(config, rows, slots, weights, dtype))


@torch.inference_mode()
def longer(cache: Cache, more: int) -> Cache:
    """A copy with so many slots more."""
    keys, values = (tuple(F.pad(layer, (0, 0, 0, more)) for layer in side) for side in (cache.keys, cache.values))
    return Cache(keys, values, F.pad(cache.positions, (0, more), value=NOWHERE), cache.length)


@torch.inference_mode()
def absorb(
    weights: Weights, config: Config, context: Context, new: Sequence[Sequence[int]], chunk: int = CHUNK
) -> tuple[Float[Tensor, "batch dim"], Context]:
    """(the stream at each row's last new id, the context with the new ids), `chunk` ids at a time."""
    tokens, positions = side_by_side(context, new)
    cache = with_room(context.cache, context.cache.length + tokens.shape[1])
    ends = torch.tensor([len(row) - 1 for row in new], device=tokens.device)
    last = torch.zeros(len(new), config.dim, dtype=weights.dtype, device=weights.device)
    for start in range(0, tokens.shape[1], chunk):
        part = slice(start, start + chunk)
        x, grown = hidden(tokens[:, part], weights, config, cache, positions[:, part])
        assert grown is not None
        cache = grown
        here = (ends - start).clamp(0, x.shape[1] - 1)
        ends_here = (start <= ends) & (ends < start + chunk)
        last = torch.where(ends_here[:, None], x[torch.arange(len(new), device=tokens.device), here], last)
    return last, context.grown(new, cache)


@torch.inference_mode()
def read_each(
    weights: Weights,
    config: Config,
    context: Context,
    new: Sequence[Sequence[int]],
    step: DecodeStep | None,
    scored: bool,
) -> tuple[Float[Tensor, "batch seq vocab"] | None, Context]:
    """`reading.read_each`."""
    tokens, positions = side_by_side(context, new)
    cache = with_room(context.cache, context.cache.length + tokens.shape[1])
    grown = step(tokens, positions, cache, scored) if step else llama(tokens, weights, config, cache, positions)
    return grown[0], context.grown(new, grown[1])


@torch.inference_mode()
def read(
    weights: Weights, config: Config, context: Context, new: Sequence[Sequence[int]], chunk: int
) -> tuple[Float[Tensor, "batch vocab"], Context]:
    """`reading.read`. The last position alone is unembedded."""
    last, context = absorb(weights, config, context, new, chunk)
    return unembed(last, weights), context
