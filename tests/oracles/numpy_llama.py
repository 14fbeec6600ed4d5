"""A second Llama, from the papers and not from `llucid.llama`: the oracle of its values and of its gradients.

float64 and NumPy only, one sequence at a time, plain rather than fast, and without dropout. Each backward function
follows its forward function and recomputes what it needs. `d_y` means ∂loss/∂y, and `at` the positions of the rows.
"""

import numpy as np
from numpy.typing import NDArray

from llucid.config import Config
from llucid.weights import AttentionWeights, BlockWeights, FeedForwardWeights, Weights, named_leaves, shapes

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def linear(x: Array, w: Array, bias: Array | None) -> Array:
    """y = x Wᵀ + b; no bias is 0."""
    return x @ w.T + (0 if bias is None else bias)


def linear_back(d_y: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """y = x Wᵀ + b: d_x = d_y W and d_W = d_yᵀ x."""
    return d_y @ w, d_y.T @ x


def bias_back(d_y: Array, bias: Array | None) -> Array | None:
    """y = x Wᵀ + b: d_b = d_y summed over positions; None where there is no bias."""
    return None if bias is None else d_y.sum(axis=0)


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """y = g ∘ x / r with r = √(mean(x²) + ε). Zhang & Sennrich 2019, equation 4; Llama has ε inside the root."""
    return gain * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def rms_norm_back(d_y: Array, x: Array, gain: Array, eps: float) -> tuple[Array, Array]:
    """With n = x / r and u = g ∘ d_y: d_x = (u − n mean(u ∘ n)) / r, and d_g = d_y ∘ n summed over positions."""
    r = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    n, u = x / r, gain * d_y
    return (u - n * np.mean(u * n, axis=-1, keepdims=True)) / r, np.sum(d_y * n, axis=0)


def rope_frequencies(config: Config) -> Array:
    """Radians per position of each pair, f = θ^(−2j/d), [head_dim/2]. Su et al. 2021, §3.2.2.

    Llama 3.1 divides by `factor` where the wavelength λ = 2π/f exceeds L/low, keeps f where λ < L/high, and blends
    between: (1−s) f/factor + s f with s = (L/λ − low)/(high − low). Meta's reference code.
    """
    frequencies = [config.rope_theta ** (-2 * j / config.head_dim) for j in range(config.head_dim // 2)]
    if (scaling := config.rope_scaling) is not None:
        length, low, high = scaling.original_context, scaling.low_freq_factor, scaling.high_freq_factor
        for j, f in enumerate(frequencies):
            wavelength = 2 * np.pi / f
            if wavelength > length / low:
                frequencies[j] = f / scaling.factor
            elif wavelength >= length / high:
                s = (length / wavelength - low) / (high - low)
                frequencies[j] = (1 - s) * f / scaling.factor + s * f
    return np.array(frequencies, dtype=np.float64)


def rotate(x: Array, positions: Integers, frequencies: Array) -> Array:
    """Turns each (x_2j, x_2j+1) of x [seq, heads, head_dim] by position · f_j. Su et al. 2021, equations 13 to 15."""
    angles = positions[:, np.newaxis] * frequencies
    rotations = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
    return np.einsum("absj,shjb->shja", rotations, x.reshape(*x.shape[:2], -1, 2)).reshape(x.shape)


def attention_probabilities(query: Array, key: Array, query_positions: Integers, key_positions: Integers) -> Array:
    """softmax(q kᵀ / √d) of one head over the keys at n ≤ m, [queries, keys]. Vaswani et al. 2017, equation 1."""
    visible = np.array([[n <= m for n in key_positions.tolist()] for m in query_positions.tolist()])
    assert visible.any(axis=1).all(), f"a query sees no key: {query_positions=} {key_positions=}"
    scores = np.where(visible, query @ key.T / np.sqrt(query.shape[-1]), -np.inf)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def attention(query: Array, key: Array, value: Array, query_positions: Integers, key_positions: Integers) -> Array:
    """o_h = P_h v_g with g = ⌊h / (heads/kv_heads)⌋, of [seq, heads, head_dim]. Ainslie et al. 2023, §2.2."""
    mixed, group = np.empty_like(query), query.shape[1] // key.shape[1]
    for h in range(query.shape[1]):
        p = attention_probabilities(query[:, h], key[:, h // group], query_positions, key_positions)
        mixed[:, h] = p @ value[:, h // group]
    return mixed


def attention_back(d_o: Array, query: Array, key: Array, value: Array, at: Integers) -> tuple[Array, Array, Array]:
    """d_v = Pᵀ d_o; d_P = d_o vᵀ; d_S = P ∘ (d_P − Σ_n P ∘ d_P); d_q = d_S k/√d; d_k = d_Sᵀ q/√d; groups add up."""
    d_q, d_k, d_v = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    group, root = query.shape[1] // key.shape[1], np.sqrt(query.shape[-1])
    for h in range(query.shape[1]):
        g = h // group
        p = attention_probabilities(query[:, h], key[:, g], at, at)
        d_p = d_o[:, h] @ value[:, g].T
        d_s = p * (d_p - np.sum(p * d_p, axis=1, keepdims=True))
        d_q[:, h] = d_s @ key[:, g] / root
        d_k[:, g] += d_s.T @ query[:, h] / root
        d_v[:, g] += p.T @ d_o[:, h]
    return d_q, d_k, d_v


def projections(x: Array, w: AttentionWeights[Array], config: Config, at: Integers) -> tuple[Array, Array, Array]:
    """R(x Wqᵀ + bq), R(x Wkᵀ + bk) and x Wvᵀ + bv, each [seq, its heads, head_dim]; R is the rotation."""
    pairs = (w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias)
    q, k, v = (linear(x, *pair).reshape(len(x), -1, config.head_dim) for pair in pairs)
    return rotate(q, at, rope_frequencies(config)), rotate(k, at, rope_frequencies(config)), v


def self_attention(x: Array, w: AttentionWeights[Array], config: Config, at: Integers) -> Array:
    """concat(o_1 … o_heads) Woᵀ + bo. Vaswani et al. 2017, §3.2.2."""
    return linear(attention(*projections(x, w, config, at), at, at).reshape(len(x), -1), w.output, w.output_bias)


def self_attention_back(
    d_y: Array, x: Array, w: AttentionWeights[Array], config: Config, at: Integers
) -> tuple[Array, AttentionWeights[Array]]:
    """d_o = d_y Wo, and d_x = R⁻¹(d_q) Wq + R⁻¹(d_k) Wk + d_v Wv: a rotation's transpose turns by −f."""
    q, k, v = projections(x, w, config, at)
    d_o, d_output = linear_back(d_y, attention(q, k, v, at, at).reshape(len(x), -1), w.output)
    d_q, d_k, d_v = attention_back(d_o.reshape(q.shape), q, k, v, at)
    d_q, d_k = (rotate(d, at, -rope_frequencies(config)) for d in (d_q, d_k))
    d_q, d_k, d_v = (d.reshape(len(x), -1) for d in (d_q, d_k, d_v))
    x_q, d_query = linear_back(d_q, x, w.query)
    x_k, d_key = linear_back(d_k, x, w.key)
    x_v, d_value = linear_back(d_v, x, w.value)
    pairs = (d_q, w.query_bias), (d_k, w.key_bias), (d_v, w.value_bias), (d_y, w.output_bias)
    d_biases = (bias_back(*pair) for pair in pairs)
    return x_q + x_k + x_v, AttentionWeights(d_query, d_key, d_value, d_output, *d_biases)


def swiglu(x: Array, w: FeedForwardWeights[Array]) -> Array:
    """(a σ(a) ∘ b) Wdᵀ with a = x Wgᵀ and b = x Wuᵀ, and the biases of each. Shazeer 2020, equation 6.

    σ = e^−log(1 + e⁻ᵃ), to not overflow.
    """
    a, b = linear(x, w.gate, w.gate_bias), linear(x, w.up, w.up_bias)
    return linear(a * np.exp(-np.logaddexp(0.0, -a)) * b, w.down, w.down_bias)


def swiglu_back(d_y: Array, x: Array, w: FeedForwardWeights[Array]) -> tuple[Array, FeedForwardWeights[Array]]:
    """With h = a σ(a) ∘ b: d_b = d_h ∘ a σ(a), and d_a = d_h ∘ b ∘ σ(a)(1 + a(1 − σ(a)))."""
    a, b = linear(x, w.gate, w.gate_bias), linear(x, w.up, w.up_bias)
    sigma = np.exp(-np.logaddexp(0.0, -a))
    d_h, d_down = linear_back(d_y, a * sigma * b, w.down)
    d_a, d_b = d_h * b * sigma * (1 + a * (1 - sigma)), d_h * a * sigma
    x_gate, d_gate = linear_back(d_a, x, w.gate)
    x_up, d_up = linear_back(d_b, x, w.up)
    d_biases = (bias_back(*pair) for pair in ((d_a, w.gate_bias), (d_b, w.up_bias), (d_y, w.down_bias)))
    return x_gate + x_up, FeedForwardWeights(d_gate, d_up, d_down, *d_biases)


def block(x: Array, w: BlockWeights[Array], config: Config, at: Integers) -> Array:
    """z = x + attention(norm(x)), then y = z + swiglu(norm(z)). Touvron et al. 2023a, §2.2: normalised before."""
    z = x + self_attention(rms_norm(x, w.attention_norm, config.norm_eps), w.attention, config, at)
    return z + swiglu(rms_norm(z, w.feed_forward_norm, config.norm_eps), w.feed_forward)


def block_back(
    d_y: Array, x: Array, w: BlockWeights[Array], config: Config, at: Integers
) -> tuple[Array, BlockWeights[Array]]:
    """y = z + f(z) gives d_z = d_y + (∂f/∂z)ᵀ d_y, twice."""
    normed, eps = rms_norm(x, w.attention_norm, config.norm_eps), config.norm_eps
    z = x + self_attention(normed, w.attention, config, at)
    d_normed, d_feed_forward = swiglu_back(d_y, rms_norm(z, w.feed_forward_norm, eps), w.feed_forward)
    d_branch, d_feed_forward_norm = rms_norm_back(d_normed, z, w.feed_forward_norm, eps)
    d_z = d_y + d_branch
    d_normed, d_attention = self_attention_back(d_z, normed, w.attention, config, at)
    d_branch, d_attention_norm = rms_norm_back(d_normed, x, w.attention_norm, eps)
    return d_z + d_branch, BlockWeights(d_attention_norm, d_attention, d_feed_forward_norm, d_feed_forward)


def streams(tokens: Integers, weights: Weights[Array], config: Config, at: Integers) -> list[Array]:
    """The residual stream into each block, and out of the last: x_0 = E[tokens], x_l+1 = block_l(x_l)."""
    assert all(leaf.dtype == np.float64 for _, leaf in named_leaves(weights)), "weights must be float64"
    assert {name: leaf.shape for name, leaf in named_leaves(weights)} == shapes(config), "weights must fit the config"
    assert tokens.shape == at.shape == (len(tokens),), f"{tokens.shape=} {at.shape=}"
    assert tokens.min() >= 0, f"{tokens.min()=}"  # NumPy would take it from the end of the embedding.
    found = [weights.embedding[tokens]]
    for w in weights.blocks:
        found.append(block(found[-1], w, config, at))
    return found


def logits(tokens: Integers, weights: Weights[Array], config: Config, positions: Integers | None = None) -> Array:
    """norm(x_last) Wᵀ, [seq, vocab], at positions 0 … seq−1 unless given; W is the embedding when tied."""
    x = streams(tokens, weights, config, np.arange(len(tokens)) if positions is None else positions)[-1]
    matrix = weights.embedding if weights.output is None else weights.output
    return rms_norm(x, weights.norm, config.norm_eps) @ matrix.T


def loss(tokens: Integers, targets: Integers, weights: Weights[Array], config: Config) -> float:
    """mean_m(log Σ_v e^s_mv − s_m,target), in nats: the negative log-likelihood."""
    assert targets.min() >= 0, f"{targets.min()=}"
    scores = logits(tokens, weights, config)
    surprise: Array = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(tokens)), targets]
    return float(np.mean(surprise))


def loss_and_gradients(
    tokens: Integers, targets: Integers, weights: Weights[Array], config: Config
) -> tuple[float, Weights[Array]]:
    """Also ∂loss/∂w of each array: d_logits = (softmax − onehot(target)) / seq, then each equation backwards."""
    assert targets.min() >= 0, f"{targets.min()=}"
    xs = streams(tokens, weights, config, at := np.arange(len(tokens)))
    normed = rms_norm(xs[-1], weights.norm, config.norm_eps)
    matrix = weights.embedding if weights.output is None else weights.output
    log_p = normed @ matrix.T - np.logaddexp.reduce(normed @ matrix.T, axis=1, keepdims=True)
    d_logits = (np.exp(log_p) - np.eye(config.vocab_size)[targets]) / len(tokens)
    d_normed, d_matrix = linear_back(d_logits, normed, matrix)
    d_x, d_norm = rms_norm_back(d_normed, xs[-1], weights.norm, config.norm_eps)
    d_blocks: list[BlockWeights[Array]] = []
    for x, w in zip(reversed(xs[:-1]), reversed(weights.blocks), strict=True):
        d_x, d_block = block_back(d_x, x, w, config, at)
        d_blocks.insert(0, d_block)
    d_embedding = d_matrix if weights.output is None else np.zeros_like(weights.embedding)
    np.add.at(d_embedding, tokens, d_x)  # Where a token occurs twice, `+=` would add one gradient only.
    d_output = None if weights.output is None else d_matrix
    return -float(np.mean(log_p[at, targets])), Weights(d_embedding, tuple(d_blocks), d_norm, d_output)
