"""The Llama once more, in JAX: every function takes one example, of the smallest shape that it can.

`rms_norm` knows one vector, `rope` one head at one position, `attend` one query. `vmap` turns a function of one thing
into a function of many, and a comment names the axis that it adds. So the code is the maths, with no axes to count, and
no optimisations: no cache, no fused kernel, no scan over the layers.

    x = E[tokens]
    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
    logits = O RMSNorm(x)

Shapes are in whole words: rows (sequences), seq (tokens of one), dim, group (query heads that share a key head),
head_dim, half (head_dim/2), ffn, vocab. The arrays are those of `llucid.weights.Weights`, as JAX's instead of
PyTorch's; a matrix W is stored [out, in], so that W x applies it. Config is hashable:
`jax.jit(llama, static_argnames="config")` compiles.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.fast import dense
from llucid.rope import attention_factor, dynamic_length, slowdowns
from llucid.weights import AttentionWeights, BlockWeights, FeedForwardWeights, Weights, tree_map

try:
    import jax
    import jax.numpy as jnp
    from jax import Array, vmap
except ImportError as error:
    raise LlucidError("llucid.llama_jax needs JAX, which is not installed; pip install llucid[jax]") from error


def from_torch(weights: Weights) -> Weights:
    """The same weights as JAX arrays of the same dtype, copied: JAX's never change, and PyTorch's may.

    Quantised matrices are dequantised.
    For float64, call it (and all else) inside of `jax.enable_x64()`.
    """

    def convert(leaf: torch.Tensor) -> Array:
        leaf = dense(leaf)
        # NumPy has no bfloat16; float32 holds it exactly.
        exact = leaf.detach().cpu().to(torch.promote_types(leaf.dtype, torch.float32))
        return jnp.array(exact.numpy(), dtype=str(leaf.dtype).removeprefix("torch."))

    return tree_map(convert, weights)


def to_torch(weights: Weights) -> Weights:
    """The inverse of `from_torch`, on the CPU."""

    def convert(leaf: Array) -> torch.Tensor:
        return torch.from_numpy(np.array(wide(leaf))).to(getattr(torch, leaf.dtype.name))

    return tree_map(convert, weights)


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x in float32 (or float64, if it is that): for sums, angles and exponentials, which bfloat16 would spoil."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_norm(x: Float[Array, " dim"], gain: Float[Array, " dim"], eps: float) -> Float[Array, " dim"]:
    """x / √(mean(x²) + ε) ⊙ gain.

    Zhang & Sennrich 2019, eq. 4. Rounded to the dtype of x before the gain, as Meta's code does.
    """
    rms = jnp.sqrt(jnp.mean(wide(x) ** 2) + eps)
    return (wide(x) / rms).astype(x.dtype) * gain


def rope_frequencies(config: Config, dtype: Any, length: int = 0) -> Float[Array, " half"]:
    """θⱼ = base^(−2j/head_dim): radians per position by which the j-th pair turns. Su et al. 2021 (RoFormer), §3.2.2.

    Scaled for long contexts, each pair is slowed (`rope.slowdowns`).
    """
    j = jnp.arange(config.head_dim // 2, dtype=dtype)
    return config.rope_theta ** (-2 * j / config.head_dim) / slowdowns(config, length).astype(dtype)


def rope(
    x: Float[Array, " head_dim"], position: Int[Array, ""], theta: Float[Array, " half"]
) -> Float[Array, " head_dim"]:
    """(x₂ⱼ + i·x₂ⱼ₊₁) · exp(i·m·θⱼ): each pair of neighbours, read as a complex number, is turned by m·θⱼ.

    Su et al. 2021, eq. 12–13.
    """
    pairs = wide(x[0::2]) + 1j * wide(x[1::2])
    turned = pairs * jnp.exp(1j * (position * theta))
    return jnp.stack([turned.real, turned.imag], axis=-1).ravel().astype(x.dtype)


def softmax(x: Float[Array, " seq"]) -> Float[Array, " seq"]:
    """eˣ / Σ eˣ; the largest x is taken off all of them, which changes nothing and keeps eˣ finite."""
    e = jnp.exp(x - jnp.max(x, initial=-jnp.inf))  # of no numbers, too
    return e / jnp.sum(e)


def attend(
    q: Float[Array, " head_dim"],
    k: Float[Array, "seq head_dim"],
    v: Float[Array, "seq head_dim"],
    position: Int[Array, ""],
    positions: Int[Array, " seq"],
) -> Float[Array, " head_dim"]:
    """softmax(k q / √head_dim) v over the keys that the query sees: those at n ≤ m. Vaswani et al. 2017, eq. 1."""
    scores = k @ q / math.sqrt(q.size)
    p = softmax(jnp.where(positions <= position, wide(scores), -jnp.inf))
    return p.astype(v.dtype) @ v


def linear(
    x: Float[Array, " columns"], w: Float[Array, "rows columns"], bias: Float[Array, " rows"] | None
) -> Float[Array, " rows"]:
    """W x + b, or W x where there is no bias."""
    return w @ x if bias is None else w @ x + bias


Linear = tuple[Float[Array, "rows columns"], Float[Array, " rows"] | None]
"""A matrix and its bias."""


def attention_head(
    x: Float[Array, "seq dim"],
    query: Linear,
    key: Linear,
    value: Linear,
    positions: Int[Array, " seq"],
    theta: Float[Array, " half"],
) -> Float[Array, "seq head_dim"]:
    """Each token asks (query) and gathers (value) from the tokens that answer (key). Vaswani et al. 2017, §3.2.2."""
    rotate = vmap(rope, (0, 0, None))  # seq
    q, k, v = (vmap(linear, (0, None, None))(x, *matrix) for matrix in (query, key, value))  # seq
    q, k = rotate(q, positions, theta), rotate(k, positions, theta)
    return vmap(attend, (0, None, None, 0, None))(q, k, v, positions, positions)  # seq


def attention(
    x: Float[Array, "seq dim"],
    weights: AttentionWeights,
    config: Config,
    positions: Int[Array, " seq"],
    theta: Float[Array, " half"],
) -> Float[Array, "seq dim"]:
    """Wₒ concat(head₁, head₂, …), where a group of query heads shares one key and value head.

    Vaswani et al. 2017, §3.2.2; Ainslie et al. 2023 (GQA), §2.2. `vmap` computes a shared k and v once for its group,
    because nothing in them depends on the query head.
    """

    def by_head(array: Array, *shape: int) -> Array:
        return array.reshape(config.kv_heads, *shape, config.head_dim, *array.shape[1:])

    query = tree_map(
        lambda array: attention_factor(config) ** 2 * by_head(array, -1), (weights.query, weights.query_bias)
    )
    key, value = tree_map(by_head, ((weights.key, weights.key_bias), (weights.value, weights.value_bias)))
    group = vmap(attention_head, (None, 0, None, None, None, None))  # query heads of a group
    heads = vmap(group, (None, 0, 0, 0, None, None))  # key and value heads
    outputs = heads(x, query, key, value, positions, theta)  # kv_heads group seq head_dim
    return vmap(lambda of_token: linear(of_token.ravel(), weights.output, weights.output_bias), 2)(outputs)  # seq


def silu(z: Float[Array, " ffn"]) -> Float[Array, " ffn"]:
    """z σ(z), with σ(z) = 1 / (1 + e⁻ᶻ). Hendrycks & Gimpel 2016, §2."""
    # Not spelled z / (1 + e⁻ᶻ): its gradient is NaN where e⁻ᶻ overflows.
    return (wide(z) * jax.lax.logistic(wide(z))).astype(z.dtype)


def swiglu(x: Float[Array, " dim"], weights: FeedForwardWeights) -> Float[Array, " dim"]:
    """D (silu(G x) ⊙ U x): a gate decides what passes. Shazeer 2020, eq. 6."""
    gate = silu(linear(x, weights.gate, weights.gate_bias))
    return linear(gate * linear(x, weights.up, weights.up_bias), weights.down, weights.down_bias)


def block(
    x: Float[Array, "seq dim"],
    weights: BlockWeights,
    config: Config,
    positions: Int[Array, " seq"],
    theta: Float[Array, " half"],
) -> Float[Array, "seq dim"]:
    """x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation)."""
    norm = vmap(rms_norm, (0, None, None))  # seq
    feed_forward = vmap(swiglu, (0, None))  # seq
    normed = norm(x, weights.attention_norm, config.norm_eps)
    x = x + attention(normed, weights.attention, config, positions, theta)
    normed = norm(x, weights.feed_forward_norm, config.norm_eps)
    return x + feed_forward(normed, weights.feed_forward)


def unembed(x: Float[Array, " dim"], weights: Weights) -> Float[Array, " vocab"]:
    """One score per token of the vocabulary; a tied embedding is the output matrix too. Press & Wolf 2017."""
    return (weights.embedding if weights.output is None else weights.output) @ x


def llama(
    tokens: Int[Array, " seq"], weights: Weights, config: Config, positions: Int[Array, " seq"] | None = None
) -> Float[Array, "seq vocab"]:
    """Scores (logits) of every next token at every position; their softmax is the model's probability.

    `positions` says where the tokens stand, if not in order from 0. JAX refuses no id: it takes another where one is
    outside of the vocabulary.
    """
    length = tokens.size if positions is None else dynamic_length(config, positions)
    positions = jnp.arange(tokens.size) if positions is None else positions
    theta = rope_frequencies(config, wide(weights.norm).dtype, length)
    x = weights.embedding[tokens]
    for block_weights in weights.blocks:
        x = block(x, block_weights, config, positions, theta)
    x = vmap(rms_norm, (0, None, None))(x, weights.norm, config.norm_eps)  # seq
    return vmap(unembed, (0, None))(x, weights)  # seq


def surprise(scores: Float[Array, " vocab"], target: Int[Array, ""]) -> Float[Array, ""]:
    """−log softmax(scores)[target], in nats: how unexpected the token was. Shannon 1948, §6."""
    scores = wide(scores) - jnp.max(wide(scores))
    return jnp.log(jnp.sum(jnp.exp(scores))) - scores[target]


def loss(
    inputs: Int[Array, "rows seq"], targets: Int[Array, "rows seq"], weights: Weights, config: Config
) -> Float[Array, ""]:
    """The mean surprise in nats per token; targets of −100 do not count."""
    logits = vmap(partial(llama, weights=weights, config=config))(inputs)  # rows
    surprises = vmap(vmap(surprise))(logits, targets)  # seq, then rows
    return jnp.mean(surprises, where=targets != -100)


@partial(jax.jit, static_argnames=("config", "max_tokens", "temperature"))
def generate(
    prompt: Int[Array, " prompt"],
    weights: Weights,
    config: Config,
    max_tokens: int,
    temperature: float = 0.0,
    seed: Int[Array, ""] | int = 0,
) -> Int[Array, " max_tokens"]:
    """What follows the prompt: at temperature 0 always the likeliest token, else one drawn from softmax(scores / T).

    The whole text is read again for each token. What is not yet written stands after it, where no token sees it.
    Raises LlucidError if prompt and continuation are longer than the context.
    """
    if prompt.size == 0 or prompt.size + max_tokens > config.context:
        raise LlucidError(
            f"a prompt of {prompt.size} tokens and max_tokens={max_tokens}: expected at least one, and together no "
            f"more than the context of {config.context}"
        )

    def write(text: Int[Array, " seq"], length: Int[Array, ""]) -> tuple[Int[Array, " seq"], Int[Array, ""]]:
        scores = wide(llama(text, weights, config)[length - 1])
        if temperature == 0:
            token = jnp.argmax(scores)
        else:
            token = jax.random.categorical(jax.random.fold_in(jax.random.key(seed), length), scores / temperature)
        return text.at[length].set(token), token

    text = jnp.pad(prompt, (0, max_tokens))
    return jax.lax.scan(write, text, jnp.arange(prompt.size, text.size))[1]
