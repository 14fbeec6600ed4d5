"""The Llama as its equations: pure functions from tokens and weights to logits.

Read from top to bottom. A token becomes a vector (its row of E), the vector passes through blocks that add to it
(`block` = attention + feed-forward, each after a norm), and what comes out is scored against every token (`unembed`).

    x = E[tokens]
    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
    logits = RMSNorm(x) Oᵀ

`linear(x, W, b)` is x Wᵀ + b (Meta's Llamas have no biases: b is None), `linear_each` that for several W, `embed` the
rows of E, and `attention_fast` what `attention_written_out` says; fast.py has them.

Shapes are in whole words: batch (sequences), seq (new tokens of each), slots (of the cache that are filled, or seq
where there is none), capacity (all slots that it has), dim, heads, kv_heads, head_dim, half (head_dim/2), q (heads ·
head_dim), kv (kv_heads · head_dim), ffn, vocab.
Sources: LLaMA (Touvron et al. 2023a), §2.2; Llama 2 (2023b), §2.2; The Llama 3 Herd of Models (2024), §3.2.
"""

import math
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from llucid.cache import Cache
from llucid.config import Config
from llucid.fast import attention_fast, embed, linear, linear_each
from llucid.rope import attention_factor, dynamic_length, slowdowns
from llucid.weights import AttentionWeights, BlockWeights, FeedForwardWeights, Weights


def wide(x: Tensor) -> Tensor:
    """x in float32 (or float64, if it is that): for sums, angles and exponentials, which bfloat16 would spoil."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Float[Tensor, "*batch dim"], gain: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "*batch dim"]:
    """x / √(mean(x²) + ε) ⊙ gain.

    Zhang & Sennrich 2019, eq. 4. Rounded to the dtype of x before the gain, as Meta's code does.
    """
    x_wide = wide(x)
    return (x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * gain


def rope_frequencies(config: Config, like: Tensor, length: int = 0) -> Float[Tensor, " half"]:
    """θⱼ = base^(−2j/head_dim): radians per position by which the j-th pair turns. In the wide dtype of `like`.

    Su et al. 2021 (RoFormer), §3.2.2. Scaled for long contexts, each pair is slowed (`rope.slowdowns`).
    """
    j = torch.arange(config.head_dim // 2, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    slower = 1 if config.rope_scaling is None else torch.from_numpy(slowdowns(config, length)).to(j)
    return 1.0 / config.rope_theta ** (2 * j / config.head_dim) / slower


def rotations(
    positions: Int[Tensor, "batch seq"], theta: Float[Tensor, " half"], size: float = 1.0
) -> Float[Tensor, "batch 1 seq half 2"]:
    """exp(i·m·θⱼ) as (cos m·θⱼ, sin m·θⱼ): the complex number that turns pair j at position m. Only YaRN's `size` is
    not 1."""
    angles = positions[:, None, :, None] * theta
    return size * torch.stack((angles.cos(), angles.sin()), -1)


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"], rotation: Float[Tensor, "batch 1 seq half 2"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """(x₂ⱼ + i·x₂ⱼ₊₁) · exp(i·m·θⱼ): each pair of neighbours, read as a complex number, is turned.

    Su et al. 2021, eq. 12–13. Lengths stay; the product of a turned query and key depends on the distance alone.
    """
    pairs = torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rotation)).flatten(-2).type_as(x)


def rotate_real(
    x: Float[Tensor, "batch heads seq head_dim"], rotation: Float[Tensor, "batch 1 seq half 2"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """`rotate` in real numbers, (a cos − b sin, a sin + b cos), which compilers fuse. Su et al. 2021, eq. 34."""
    cos, sin = rotation.unbind(-1)
    a, b = wide(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


def visible(
    query_positions: Int[Tensor, "batch seq"], key_positions: Int[Tensor, "batch slots"]
) -> Bool[Tensor, "batch 1 seq slots"]:
    """Who sees whom: a query at position m sees keys at n ≤ m. `place` leaves the mask out where order says as much."""
    return (key_positions[:, None, :] <= query_positions[:, :, None])[:, None]


def attention_written_out(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """softmax(q kᵀ / √head_dim + M) v with M = 0 where the mask is true, else −∞.

    Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (GQA), §2.2: each k and v serves heads / kv_heads query heads in a
    row. PyTorch takes the softmax of bfloat16 in float32. No mask means that the keys are at the queries' own
    positions, in order.
    """
    if mask is None:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    m = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    q = (q / math.sqrt(q.shape[-1])).unflatten(1, (k.shape[1], -1))  # batch kv_heads group seq head_dim
    scores = (q @ k[:, :, None].mT).add_(m[:, :, None])
    p = scores.softmax(-1)
    return (p @ v[:, :, None]).flatten(1, 2)


class Placement(NamedTuple):
    """Where the tokens of a pass stand: what every layer needs beside its input and its weights."""

    rotation: Float[Tensor, "batch 1 seq half 2"]
    mask: Bool[Tensor, "batch 1 seq slots"] | None = None
    """Which key each query sees; None: that of its own position and all before it."""
    cache: Cache | None = None
    layer: int = 0
    """Whose keys and values the cache is asked for."""


def attend(
    q: Float[Tensor, "batch seq q"],
    k: Float[Tensor, "batch seq kv"],
    v: Float[Tensor, "batch seq kv"],
    head_dim: int,
    at: Placement,
) -> Float[Tensor, "batch seq q"]:
    """What the queries gather, head by head: RoPE turns queries and keys, and the cache adds what came before.

    `attention_fast` is given the definition, which it uses where nothing is faster.
    """
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v))
    turn = rotate_real if torch.compiler.is_compiling() else rotate
    q, k = turn(q, at.rotation), turn(k, at.rotation)
    if at.cache is not None:
        k, v = at.cache.write(at.layer, k, v)
    return attention_fast(q, k, v, at.mask, attention_written_out).transpose(1, 2).flatten(-2)


def attention(
    x: Float[Tensor, "batch seq dim"], weights: AttentionWeights, config: Config, at: Placement
) -> Float[Tensor, "batch seq dim"]:
    """Attend(x Qᵀ, x Kᵀ, x Vᵀ) Oᵀ: each token asks (query) and gathers (value) from those that answer (key).

    Vaswani et al. 2017, §3.2.2.
    """
    q, k, v = linear_each(
        x, (weights.query, weights.query_bias), (weights.key, weights.key_bias), (weights.value, weights.value_bias)
    )
    return linear(attend(q, k, v, config.head_dim, at), weights.output, weights.output_bias)


def swiglu(x: Float[Tensor, "batch seq dim"], weights: FeedForwardWeights) -> Float[Tensor, "batch seq dim"]:
    """(silu(x Gᵀ) ⊙ x Uᵀ) Dᵀ with silu(z) = z / (1 + e⁻ᶻ): a gate decides what passes. Shazeer 2020, eq. 6."""
    gate = F.silu(linear(x, weights.gate, weights.gate_bias))
    return linear(gate * linear(x, weights.up, weights.up_bias), weights.down, weights.down_bias)


def drop(x: Tensor, rate: float, generator: Generator | None) -> Tensor:
    """In training, 0 with probability `rate`, else x / (1 − rate): the mean stays. Srivastava et al. 2014, §4, §10."""
    if generator is None or rate == 0:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - rate, generator=generator) / (1 - rate)


def block(
    x: Float[Tensor, "batch seq dim"],
    weights: BlockWeights,
    config: Config,
    at: Placement,
    dropout: Generator | None = None,
) -> Float[Tensor, "batch seq dim"]:
    """x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation)."""
    normed = rms_norm(x, weights.attention_norm, config.norm_eps)
    x = x + drop(attention(normed, weights.attention, config, at), config.dropout, dropout)
    normed = rms_norm(x, weights.feed_forward_norm, config.norm_eps)
    return x + drop(swiglu(normed, weights.feed_forward), config.dropout, dropout)


def place(
    tokens: Int[Tensor, "batch seq"], cache: Cache | None, positions: Int[Tensor, "*batch seq"] | None
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch 1 seq slots"] | None, Cache | None]:
    """Where tokens stand, whom each sees (None: itself and all before it), and the cache with slots for them."""
    batch, seq = tokens.shape
    if cache is not None:
        placed = cache.next_positions(seq) if positions is None else positions.expand(batch, seq)
        cache = cache.append(placed)
        return placed, visible(placed, cache.positions[:, : cache.length]), cache
    if positions is None:
        return torch.arange(seq, device=tokens.device).expand(batch, seq), None, None
    positions = positions.expand(batch, seq)
    return positions, visible(positions, positions), None


def hidden(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: Generator | None = None,
) -> tuple[Float[Tensor, "batch seq dim"], Cache | None]:
    """`llama` without its last line: the normalised stream after the last block, and the cache grown by these tokens.

    Generation unembeds the last position only: the logits of a whole prompt would outweigh everything else.
    """
    positions, mask, cache = place(tokens, cache, positions)
    theta = rope_frequencies(config, weights.norm, dynamic_length(config, positions))
    rotation = rotations(positions, theta, attention_factor(config))
    x = drop(embed(tokens, weights.embedding), config.dropout, dropout)
    for layer, block_weights in enumerate(weights.blocks):
        x = block(x, block_weights, config, Placement(rotation, mask, cache, layer), dropout)
    return rms_norm(x, weights.norm, config.norm_eps), cache


def unembed(x: Float[Tensor, "*batch dim"], weights: Weights) -> Float[Tensor, "*batch vocab"]:
    """One score per token of the vocabulary; a tied embedding is the output matrix too. Press & Wolf 2017."""
    return linear(x, weights.embedding if weights.output is None else weights.output)


@overload
def llama(
    tokens: Tensor, weights: Weights, config: Config, cache: Cache, positions: Tensor | None = None
) -> tuple[Tensor, Cache]: ...
@overload
def llama(
    tokens: Tensor, weights: Weights, config: Config, *, positions: Tensor | None = None, dropout: Any = None
) -> Tensor: ...
def llama(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: Generator | None = None,
) -> Float[Tensor, "batch seq vocab"] | tuple[Float[Tensor, "batch seq vocab"], Cache]:
    """Scores (logits) of every next token at every position; their softmax is the model's probability.

    Without a cache, the logits. With one, `(logits, cache)`: the tokens follow those in the cache, and the new cache
    holds them too. `positions` (seq, or batch seq) says where tokens stand if not at 0, 1, 2 and so on; padding
    stands at `config.NOWHERE`. A `dropout` generator means training. Raises ValueError if the cache has too few slots.
    """
    x, grown = hidden(tokens, weights, config, cache, positions, dropout)
    logits = unembed(x, weights)
    return logits if grown is None else (logits, grown)
