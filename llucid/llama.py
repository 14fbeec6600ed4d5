"""The Llama as its equations: pure functions from tokens and weights to logits.

Read from top to bottom. A token becomes a vector (`embed`), the vector passes through blocks that add to it
(`block` = attention + feed-forward, each behind a norm), and what comes out is scored against every token (`unembed`).

    x = E[tokens]
    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
    logits = RMSNorm(x) Oᵀ

Shapes are in whole words: batch (sequences), seq (new tokens of each), slots (of the cache, or seq where there is
none), dim, heads, kv_heads, head_dim, half (head_dim/2), ffn, vocab. Sources: LLaMA (Touvron et al. 2023a), §2.2;
Llama 2 (2023b), §2.2; The Llama 3 Herd of Models (2024), §3.2.
"""

import math
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.weights import AttentionWeights, BlockWeights, FeedForwardWeights, Weights

NOWHERE = 2**31 - 1
"""The position of padding and of empty cache slots: later than every token, so that none ever sees it."""


def wide(x: Tensor) -> Tensor:
    """x in float32 (or float64, if it is that): for sums, angles and exponentials, which bfloat16 would spoil."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Float[Tensor, "*batch dim"], gain: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "*batch dim"]:
    """x / √(mean(x²) + ε) ⊙ gain.

    Zhang & Sennrich 2019, eq. 4. Rounded to the dtype of x before the gain, as Meta's code does.
    """
    x_wide = wide(x)
    return (x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * gain


def rope_frequencies(config: Config, like: Tensor) -> Float[Tensor, " half"]:
    """θⱼ = base^(−2j/head_dim): radians per position by which the j-th pair turns. In the wide dtype of `like`.

    Su et al. 2021 (RoFormer), §3.2.2. With Llama 3.1's scaling, a pair whose wavelength λ = 2π/θ is long against the
    original context turns `factor` times slower, a short one as before, and between the two the mixture s decides.
    """
    pair = torch.arange(0, config.head_dim, 2, device=like.device).to(wide(like[:0]).dtype)
    theta = 1.0 / config.rope_theta ** (pair / config.head_dim)
    if config.rope_scaling is None:
        return theta
    scaling = config.rope_scaling
    turns = scaling.original_context * theta / (2 * math.pi)
    s = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    s = s.clamp(0, 1)
    return (1 - s) * theta / scaling.factor + s * theta


def rotations(
    positions: Int[Tensor, "batch seq"], theta: Float[Tensor, " half"]
) -> Complex[Tensor, "batch 1 seq half"]:
    """exp(i·m·θⱼ) for each position m and pair j: the unit complex number that turns the pair."""
    angles = positions[:, None, :, None] * theta
    return torch.polar(torch.ones_like(angles), angles)


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"], rotation: Complex[Tensor, "batch 1 seq half"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """(x₂ⱼ + i·x₂ⱼ₊₁) · exp(i·m·θⱼ): each pair of neighbours, read as a complex number, is turned.

    Su et al. 2021, eq. 12–13. Lengths stay; the product of a turned query and key depends on the distance alone.
    """
    pairs = torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


def rotate_real(
    x: Float[Tensor, "batch heads seq head_dim"], rotation: Complex[Tensor, "batch 1 seq half"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """`rotate` in real numbers, (a cos − b sin, a sin + b cos), which compilers fuse. Su et al. 2021, eq. 34."""
    cos, sin = rotation.real, rotation.imag
    a, b = wide(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


def visible(
    query_positions: Int[Tensor, "batch seq"], key_positions: Int[Tensor, "batch slots"]
) -> Bool[Tensor, "batch 1 seq slots"]:
    """Who sees whom: a query at position m sees the keys at positions n ≤ m. The only mask there is."""
    return (key_positions[:, None, :] <= query_positions[:, :, None])[:, None]


def attention_written_out(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """softmax(q kᵀ / √head_dim + M) v with M = 0 where the mask is true, else −∞; heads in order share k and v.

    Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (GQA), §2.2. PyTorch takes the softmax of bfloat16 in float32. No
    mask means that the keys are at the queries' own positions, in order.
    """
    if mask is None:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    m = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    q = (q / math.sqrt(q.shape[-1])).unflatten(1, (k.shape[1], -1))  # batch kv_heads group seq head_dim
    scores = (q @ k[:, :, None].mT).add_(m[:, :, None])
    return (scores.softmax(-1) @ v[:, :, None]).flatten(1, 2)


def attention_fused(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """`attention_written_out` without ever holding all the scores. Dao et al. 2022 (FlashAttention), algorithm 1."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)


class Cache(NamedTuple):
    """The keys and values of the tokens so far: a value that knows its length, returned longer than it came.

    Slots are allocated once and filled from the left. A longer cache shares them with the one it grew from, which
    stays true up to its own length: to go back, keep the old value (and grow only one of the two).
    """

    keys: tuple[Float[Tensor, "batch kv_heads capacity head_dim"], ...]
    values: tuple[Float[Tensor, "batch kv_heads capacity head_dim"], ...]
    positions: Int[Tensor, "batch capacity"]
    length: int

    def next_positions(self, seq: int) -> Int[Tensor, "batch seq"]:
        """Where the next `seq` tokens of each row stand: behind its last one, padding not counted."""
        if self.length == 0:
            return torch.arange(seq, device=self.positions.device).expand(len(self.positions), seq)
        filled = self.positions[:, : self.length]
        last = filled.masked_fill(filled == NOWHERE, -1).amax(1, keepdim=True)
        return last + torch.arange(1, seq + 1, device=filled.device)

    def append(self, positions: Int[Tensor, "batch seq"]) -> "Cache":
        """The cache with slots taken for tokens at these positions; `write` fills them, layer by layer."""
        start, end = self.length, self.length + positions.shape[1]
        if end > self.positions.shape[1]:
            raise ValueError(f"the cache has {self.positions.shape[1]} slots and {end} tokens do not fit into it")
        self.positions[:, start:end] = positions
        return self._replace(length=end)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, after `k` and `v` (batch kv_heads seq head_dim) fill its last slots.

        They come in the dtype of `k`, in whatever they are kept.
        """
        last = slice(self.length - k.shape[2], self.length)
        self.keys[layer][:, :, last], self.values[layer][:, :, last] = k, v
        keys, values = (side[layer][:, :, : self.length].type_as(k) for side in (self.keys, self.values))
        return keys, values


def empty_cache(config: Config, batch: int, capacity: int, weights: Weights, dtype: torch.dtype | None = None) -> Cache:
    """A cache for `batch` sequences of at most `capacity` tokens, on the device and, unless told, in their dtype."""
    shape = (batch, config.kv_heads, capacity, config.head_dim)
    keys, values = (tuple(weights.norm.new_empty(shape, dtype=dtype) for _ in range(config.layers)) for _ in "kv")
    positions = torch.full((batch, capacity), NOWHERE, device=weights.norm.device)
    return Cache(keys, values, positions, length=0)


def attention(
    x: Float[Tensor, "batch seq dim"],
    weights: AttentionWeights,
    config: Config,
    rotation: Complex[Tensor, "batch 1 seq half"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
    cache: Cache | None = None,
    layer: int = 0,
) -> Float[Tensor, "batch seq dim"]:
    """Each token asks (query) and gathers (value) from the tokens that answer (key), in every head at once.

    Vaswani et al. 2017, §3.2.2; Ainslie et al. 2023.
    """
    q = F.linear(x, weights.query).unflatten(-1, (config.heads, config.head_dim)).transpose(1, 2)
    k = F.linear(x, weights.key).unflatten(-1, (config.kv_heads, config.head_dim)).transpose(1, 2)
    v = F.linear(x, weights.value).unflatten(-1, (config.kv_heads, config.head_dim)).transpose(1, 2)
    turn = rotate_real if torch.compiler.is_compiling() else rotate
    q, k = turn(q, rotation), turn(k, rotation)
    if cache is not None:
        k, v = cache.write(layer, k, v)
    # On a CPU the fused kernel for bfloat16 is slower than the definition, as long as there are few scores to hold.
    few = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] * k.shape[2] <= 256 * 256
    attend = attention_written_out if few else attention_fused
    return F.linear(attend(q, k, v, mask).transpose(1, 2).flatten(-2), weights.output)


def swiglu(x: Float[Tensor, "batch seq dim"], weights: FeedForwardWeights) -> Float[Tensor, "batch seq dim"]:
    """(silu(x Gᵀ) ⊙ x Uᵀ) Dᵀ with silu(z) = z / (1 + e⁻ᶻ): a gate decides what passes. Shazeer 2020, eq. 6."""
    return F.linear(F.silu(F.linear(x, weights.gate)) * F.linear(x, weights.up), weights.down)


def drop(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Training only: each number is zeroed with probability `rate`, the others grow to keep the mean.

    Srivastava et al. 2014, §4, scaled as in its §10. Without a generator, x.
    """
    if generator is None or rate == 0:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - rate, generator=generator) / (1 - rate)


def block(
    x: Float[Tensor, "batch seq dim"],
    weights: BlockWeights,
    config: Config,
    rotation: Complex[Tensor, "batch 1 seq half"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    dropout: torch.Generator | None = None,
) -> Float[Tensor, "batch seq dim"]:
    """x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation)."""
    normed = rms_norm(x, weights.attention_norm, config.norm_eps)
    x = x + drop(attention(normed, weights.attention, config, rotation, mask, cache, layer), config.dropout, dropout)
    normed = rms_norm(x, weights.feed_forward_norm, config.norm_eps)
    return x + drop(swiglu(normed, weights.feed_forward), config.dropout, dropout)


def hidden(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch seq dim"], Cache | None]:
    """`llama` without its last line: the normalised stream after the last block, and the cache grown by these tokens.

    Generation unembeds the last position only: the logits of a whole prompt would outweigh everything else.
    """
    batch, seq = tokens.shape
    mask = None
    if cache is not None:
        positions = cache.next_positions(seq) if positions is None else positions.expand(batch, seq)
        cache = cache.append(positions)
        mask = visible(positions, cache.positions[:, : cache.length])
    elif positions is not None:
        mask = visible(positions.expand(batch, seq), positions.expand(batch, seq))
    else:
        positions = torch.arange(seq, device=tokens.device)
    rotation = rotations(positions.expand(batch, seq), rope_frequencies(config, weights.norm))

    x = drop(F.embedding(tokens, weights.embedding), config.dropout, dropout)
    for layer, block_weights in enumerate(weights.blocks):
        x = block(x, block_weights, config, rotation, mask, cache, layer, dropout)
    return rms_norm(x, weights.norm, config.norm_eps), cache


def unembed(x: Float[Tensor, "*batch dim"], weights: Weights) -> Float[Tensor, "*batch vocab"]:
    """One score per token of the vocabulary; a tied embedding is the output matrix too. Press & Wolf 2017."""
    return F.linear(x, weights.embedding if weights.output is None else weights.output)


@overload
def llama(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: None = None,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: torch.Generator | None = None,
) -> Float[Tensor, "batch seq vocab"]: ...
@overload
def llama(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: Cache,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch seq vocab"], Cache]: ...
def llama(
    tokens: Int[Tensor, "batch seq"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    positions: Int[Tensor, "*batch seq"] | None = None,
    dropout: torch.Generator | None = None,
) -> Float[Tensor, "batch seq vocab"] | tuple[Float[Tensor, "batch seq vocab"], Cache]:
    """Scores (logits) of every next token at every position; their softmax is the model's probability.

    Without a cache, the logits. With one, `(logits, cache)`: the tokens follow those in the cache, and the new cache
    holds them too. `positions` (seq, or batch seq) says where tokens stand if not in order behind one another; padding
    stands NOWHERE. A `dropout` generator means training. Raises ValueError if the cache has too few slots left.
    """
    x, grown = hidden(tokens, weights, config, cache, positions, dropout)
    logits = unembed(x, weights)
    return logits if grown is None else (logits, grown)
