"""Configs: Meta's published sizes, and impossible values, which are refused by name."""

import math
from dataclasses import replace

import pytest
import torch

from llucid.config import RopeScaling
from llucid.errors import LlucidError
from llucid.presets import PRESETS
from llucid.weights import count, initialise, leaves, named_leaves, parameter_count, shapes, to, tree_map

PUBLISHED = {
    "stories260K": 260_032,
    "stories15M": 15_191_712,
    "llama-1-7b": 6_738_415_616,
    "llama-1-13b": 13_015_864_320,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}
"""Numbers of parameters from the models' cards and files."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert parameter_count(PRESETS[name].config) == PUBLISHED[name]


GENERATIONS = {
    "llama-1": dict(rope_theta=10_000.0, rope_scaling=None, norm_eps=1e-6, context=2048, tied_embeddings=False),
    "llama-2": dict(rope_theta=10_000.0, rope_scaling=None, norm_eps=1e-5, context=4096, tied_embeddings=False),
    "llama-3": dict(rope_theta=500_000.0, rope_scaling=None, norm_eps=1e-5, context=8192, tied_embeddings=False),
    "llama-3.1": dict(rope_theta=500_000.0, rope_scaling=8.0, norm_eps=1e-5, context=131_072, tied_embeddings=False),
    "llama-3.2": dict(rope_theta=500_000.0, rope_scaling=32.0, norm_eps=1e-5, context=131_072, tied_embeddings=True),
}
"""Values that the number of parameters does not show; of the scaling, the factor. From params.json and, for 3.2,
Hugging Face's config.json."""
META = [name for name in PRESETS if name.rpartition("-")[0] in GENERATIONS]


@pytest.mark.parametrize("name", META)
def test_presets_have_the_numbers_of_their_generation(name: str) -> None:
    config = PRESETS[name].config
    found = {number: getattr(config, number) for number in GENERATIONS["llama-1"]}
    if config.rope_scaling:
        assert config.rope_scaling == RopeScaling(
            factor=config.rope_scaling.factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
        )
        found["rope_scaling"] = config.rope_scaling.factor
    assert found == GENERATIONS[name.rpartition("-")[0]] | ({"norm_eps": 1e-5} if name == "llama-1-65b" else {})


RECIPES = {
    "llama-2-70b": (1.3, 4096),
    "llama-3-8b": (1.3, 1024),
    "llama-3-70b": (1.3, 4096),
    "llama-3.1-8b": (1.3, 1024),
    "llama-3.1-70b": (1.3, 4096),
    "llama-3.1-405b": (1.2, 4096),
    "llama-3.2-1b": (1.5, 256),
}
"""ffn_dim_multiplier and multiple_of of params.json, where they are not 1 and 256."""


@pytest.mark.parametrize("name", META)
def test_ffn_dim_equals_that_of_metas_code(name: str) -> None:
    config, (multiplier, multiple) = PRESETS[name].config, RECIPES.get(name, (1, 256))
    wanted = int(multiplier * int(2 * 4 * config.dim / 3))
    assert config.ffn_dim == -(-wanted // multiple) * multiple


@pytest.mark.parametrize("name", ["nano", "micro", "stories260K"])
def test_weights_have_the_shapes_of_the_config(name: str) -> None:
    config = PRESETS[name].config
    weights = initialise(config)
    assert count(weights) == parameter_count(config)
    assert {path: tuple(leaf.shape) for path, leaf in named_leaves(weights)} == shapes(config)
    assert (weights.output is None) == config.tied_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number"),
        ({"layers": -1}, "layers=-1 must be a whole number"),
        ({"kv_heads": 3}, "heads=2 is not divisible by kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be positive"),
        ({"norm_eps": float("inf")}, "norm_eps=inf must be positive and finite"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0 must be positive"),
        ({"rope_theta": float("inf")}, "rope_theta=inf must be positive and finite"),
        ({"ffn_dim": 1 << 31}, "ffn_dim=2147483648 is more than any format can hold"),
        ({"dropout": 1.0}, "dropout=1.0 must be"),
    ],
)
def test_impossible_numbers_are_refused_by_name(change: dict[str, float], message: str) -> None:
    with pytest.raises(LlucidError, match=message):
        replace(PRESETS["nano"].config, **change)


def test_impossible_scalings_are_refused_by_name() -> None:
    for change, message in (
        ({"factor": 0.5}, "factor=0.5"),
        ({"factor": math.nan}, "factor=nan"),
        ({"factor": math.inf}, "factor=inf"),
        ({"low_freq_factor": 4.0}, "low_freq_factor=4.0"),
        ({"original_context": 0}, "original_context=0"),
        ({"original_context": 10**309}, r"original_context=10{59} must be positive and less than 2\^31"),
    ):
        with pytest.raises(LlucidError, match=message):
            RopeScaling(**change)


def test_initial_weights_depend_only_on_the_seed_and_have_the_right_scales() -> None:
    config = PRESETS["micro"].config
    weights = initialise(config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(leaves(weights), leaves(initialise(config, seed=1)), strict=True))
    assert not torch.equal(weights.embedding, initialise(config, seed=2).embedding)
    assert torch.equal(weights.norm, torch.ones(config.dim))
    block = weights.blocks[1]
    # A deviation estimated from n numbers is itself off by 1/√(2n): less than 1 % for the smallest, of 8,320.
    assert weights.embedding.std().item() == pytest.approx(1, rel=0.04)
    for reader in (*block.attention[:3], block.feed_forward.gate, block.feed_forward.up):
        assert reader.std().item() == pytest.approx(config.dim**-0.5, rel=0.04)
    for writer in (block.attention.output, block.feed_forward.down):
        assert writer.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.04)
    assert weights.output.std().item() == pytest.approx(0.02, rel=0.04)
    assert initialise(PRESETS["stories260K"].config).embedding.std().item() == pytest.approx(0.02, rel=0.04)


def test_trees_map_leaf_by_leaf() -> None:
    weights = initialise(PRESETS["nano"].config)
    doubled = tree_map(lambda one, other: one + other, weights, weights)
    assert all(torch.equal(2 * a, b) for a, b in zip(leaves(weights), leaves(doubled), strict=True))
    assert type(doubled.blocks[0]) is type(weights.blocks[0])
    assert {leaf.dtype for leaf in leaves(to(weights, torch.bfloat16))} == {torch.bfloat16}
