"""The oracle against itself and against arithmetic by hand: gradients by finite differences, values by small cases."""

import numpy as np
import pytest

from llucid.config import Config, RopeScaling
from llucid.weights import FeedForwardWeights, Weights, assemble, named_leaves

from . import numpy_llama as oracle

STRETCHED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
"""With θ = 100 and heads of 6, the three pairs make 10.2, 2.2 and 0.5 turns in 64 tokens: kept, blended, slowed."""
GROUPED = Config(
    dim=6, layers=2, heads=4, kv_heads=2, head_dim=6, ffn_dim=5, vocab_size=7, context=64,
    norm_eps=0.1, rope_theta=100.0, rope_scaling=STRETCHED, tied_embeddings=True,
)  # fmt: skip
PLAIN = Config(
    dim=6, layers=2, heads=2, kv_heads=2, head_dim=4, ffn_dim=5, vocab_size=7, context=64, norm_eps=0.1
)  # fmt: skip
TOKENS, TARGETS = np.array([3, 0, 6, 3, 1, 5, 3, 2]), np.array([0, 6, 3, 1, 5, 3, 2, 2])


def draw(config: Config) -> Weights[oracle.Array]:
    """Gains about 1, matrices of deviation 0.5 (and an ε of 0.1): every path carries a gradient that can be seen."""
    random = np.random.default_rng(0)
    return assemble(config, lambda _, shape: (1.0 if len(shape) == 1 else 0.0) + 0.5 * random.standard_normal(shape))


@pytest.mark.parametrize("config", [GROUPED, PLAIN], ids=["grouped, tied, stretched", "plain, untied"])
def test_gradients_are_finite_differences(config: Config) -> None:
    # (f(w+h) − f(w−h)) / 2h is off by h²/6 |f‴|, and by rounding: some 10 ε |f| / h with ε = 1.1e-16 and |f| ≈ 3.
    # The error at h = 1e-3 and 1e-4 grows as h² and shows |f‴| up to 520 here, in the embedding. So h = 3e-6, near
    # where the two are equal, gives at most 0.8e-9 + 1.1e-9; five times that is allowed. The steepest entry of every
    # array is above 0.017, a million times as much.
    step, tolerance = 3e-6, 1e-8
    weights = draw(config)
    value, gradients = oracle.loss_and_gradients(TOKENS, TARGETS, weights, config)
    assert value == pytest.approx(oracle.loss(TOKENS, TARGETS, weights, config), rel=1e-14)
    for (name, leaf), (same_name, gradient) in zip(named_leaves(weights), named_leaves(gradients), strict=True):
        assert name == same_name
        assert leaf.shape == gradient.shape, name
        differences = np.empty_like(leaf)
        for index in np.ndindex(leaf.shape):
            kept, ends = leaf[index], list[float]()
            for moved in (kept + step, kept - step):
                leaf[index] = moved
                ends.append(oracle.loss(TOKENS, TARGETS, weights, config))
            leaf[index] = kept
            differences[index] = (ends[0] - ends[1]) / (2 * step)
        assert np.abs(gradient).max() > 1e-2, f"{name} is not exercised"
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=tolerance, err_msg=name)


def test_gain_and_eps_of_rms_norm() -> None:
    # mean(3², 4²) = 12.5, and √(12.5 + 3.5) = 4.
    np.testing.assert_allclose(oracle.rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), 3.5), [[0.75, 2.0]])


def test_rotation_turns_neighbours() -> None:
    frequencies = oracle.rope_frequencies(PLAIN)
    np.testing.assert_allclose(frequencies, [1.0, 0.01], rtol=1e-15)  # 10,000^(−0/4) and 10,000^(−2/4)
    x = np.array([[[1.0, 0.0, 0.0, 2.0]]])
    # At position 3: (cos 3, sin 3) and (−2 sin 0.03, 2 cos 0.03).
    by_hand = [[[-0.9899924966004454, 0.1411200080598672, -0.05999100040499132, 1.999100067497975]]]
    np.testing.assert_allclose(oracle.rotate(x, np.array([3]), frequencies), by_hand, rtol=1e-14)
    np.testing.assert_allclose(oracle.rotate(np.array(by_hand), np.array([3]), -frequencies), x, atol=1e-15)


def test_llama_31_scaling_in_its_three_regimes() -> None:
    config = Config(
        dim=1, layers=1, heads=1, kv_heads=1, head_dim=128, ffn_dim=1, vocab_size=1, context=131072,
        rope_theta=500_000.0, rope_scaling=RopeScaling(factor=8.0, original_context=8192),
    )  # fmt: skip
    # Pair 0: f = 1, λ = 2π < 8192/4: kept. Pair 63: f = 500,000^(−63/64), λ = 2π · 407,309 > 8192: divided by 8.
    # Pair 32: f = 1/√500,000 = 0.00141421356, λ = 4442.88294, s = (8192/λ − 1)/3 = 0.281282605: between, and
    # ((1 − s)/8 + s) f = 0.371122280 f = 0.000524846161.
    scaled = oracle.rope_frequencies(config)[[0, 32, 63]]
    np.testing.assert_allclose(scaled, [1.0, 5.24846161e-4, 3.06892599e-7], rtol=3e-9)


def test_attention_scales_masks_and_groups() -> None:
    # Scores 0 and 2 ln 3 / √4 = ln 3 give 1/4 and 3/4 in group 0, equal scores 1/2 in group 1; query 0 sees only key 0.
    query, key = np.zeros((2, 4, 4)), np.zeros((2, 2, 4))
    query[:, :, 0], key[1, 0, 0] = 2 * np.log(3), 1.0
    value = np.array([[[0.0] * 4, [10.0] * 4], [[4.0] * 4, [14.0] * 4]])  # value head g has 10 g added
    mixed = oracle.attention(query, key, value, np.array([5, 6]), np.array([5, 6]))
    np.testing.assert_allclose(mixed[:, :, 0], [[0, 0, 10, 10], [3, 3, 12, 12]], rtol=1e-14)


def test_swiglu_gates_with_silu() -> None:
    # silu(ln 3) = ln 3 · 3/4, times up 2, times down 4.
    weights = FeedForwardWeights(gate=np.array([[np.log(3)]]), up=np.array([[2.0]]), down=np.array([[4.0]]))
    np.testing.assert_allclose(oracle.swiglu(np.array([[1.0]]), weights), [[6 * np.log(3)]], rtol=1e-14)
    assert np.isfinite(oracle.swiglu(np.array([[-1e4]]), weights)).all()
