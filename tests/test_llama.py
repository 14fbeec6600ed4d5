"""The equations against independent oracles, and against themselves."""

import math
from functools import partial, wraps
from inspect import getsource
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llucid import llama as equations
from llucid.cache import empty_cache
from llucid.checkpoints.huggingface import heads_of, in_halves, name_of, pairs_from_halves
from llucid.config import NOWHERE, Config
from llucid.fast import DEFINITION, Attention, attention_fast, attention_fused, attention_in_pieces, is_known
from llucid.files import digests
from llucid.llama import llama
from llucid.llama_module import Llama, SwiGLU
from llucid.weights import FeedForwardWeights, Weights, assemble, initialise, leaves, named_leaves, to, tree_map
from tests.configs import CONFIGS, RESCALED
from tests.oracles import numpy_llama

FAR = [0, 1, 2, 3, 500, 8191, 8192, 8193, 20_000, 32_767]
"""Positions at which scaling, and angles in too little precision, would show."""


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


def random_weights(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
    """Random weights, gains and biases, larger than untrained ones: logits have a standard deviation of about 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(path: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1 and not path.endswith("_bias"):
            return torch.empty(shape).uniform_(0.5, 1.5, generator=generator).to(dtype)
        return torch.empty(shape).normal_(0, 0.16, generator=generator).to(dtype)

    return assemble(config, draw)


def some_tokens(config: Config, rows: int, seq: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (rows, seq), generator=torch.Generator().manual_seed(seed))


def test_equals_numpy_oracle_in_float64(config: Config) -> None:
    """1e-10 is 10⁶ roundings of float64: room for sums in another order, none for another formula."""
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, len(FAR))
    expected = numpy_llama.logits(tokens[0].numpy(), tree_map(lambda x: x.numpy(), weights), config, np.array(FAR))
    found = llama(tokens, weights, config, positions=torch.tensor(FAR))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.3  # nearly equal logits would agree by accident


def test_gradients_equal_numpy_oracle_in_float64(config: Config) -> None:
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, 17)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected_loss, expected = numpy_llama.loss_and_gradients(
        inputs[0].numpy(), targets[0].numpy(), tree_map(lambda x: x.numpy(), weights), config
    )
    for leaf in leaves(weights):
        leaf.requires_grad_()
    loss = F.cross_entropy(llama(inputs, weights, config).flatten(0, 1), targets.flatten())
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    for (path, leaf), gradient in zip(named_leaves(weights), leaves(expected), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-9, atol=1e-11, err_msg=path)


def test_gradients_of_torch_func_equal_those_of_autograd(config: Config) -> None:
    """As weights.py says: for PyTorch, None would be a leaf of the tree."""
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 2, 9)
    arrays = dict(named_leaves(weights))

    def loss(arrays: dict[str, Tensor]) -> Tensor:
        return llama(tokens, assemble(config, lambda path, shape: arrays[path]), config).square().mean()

    found = torch.func.grad(loss)(arrays)
    for leaf in arrays.values():
        leaf.requires_grad_()
    expected = torch.autograd.grad(loss(arrays), [*arrays.values()])
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def as_transformers(config: Config, weights: Weights) -> transformers.LlamaForCausalLM:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_dim,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tied_embeddings,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            attn_implementation="eager",
        )
    )
    tensors = {name_of(path): in_halves(path, leaf, config).clone() for path, leaf in named_leaves(weights)}
    missing = theirs.load_state_dict(tensors, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if config.tied_embeddings else [])
    return theirs


def test_equals_transformers_in_float32(config: Config) -> None:
    """Logits and every gradient. Both round to float32 (2⁻²⁴ = 6e-8) after each of some hundred operations on numbers
    of about 1, in different orders: 1e-5 is some 170 roundings."""
    weights, tokens = random_weights(config), some_tokens(config, 2, len(FAR) + 1)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    theirs = as_transformers(config, weights)
    inputs, targets, positions = tokens[:, :-1], tokens[:, 1:], torch.tensor(FAR)
    expected = theirs(inputs, position_ids=positions.expand(2, -1)).logits
    found = llama(inputs, weights, config, positions=positions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(found.flatten(0, 1), targets.flatten()).backward()
    parameters = dict(theirs.named_parameters())
    for path, leaf in named_leaves(weights):
        gradient = parameters[name_of(path)].grad
        heads = heads_of(path, config)
        gradient = pairs_from_halves(gradient, heads) if heads else gradient
        torch.testing.assert_close(
            leaf.grad, gradient, rtol=1e-4, atol=1e-6, msg=lambda text, path=path: f"{path}: {text}"
        )


@pytest.mark.parametrize("positions", [list(range(32)), FAR], ids=["near", "far"])
def test_bfloat16_is_within_its_rounding_of_float32(config: Config, positions: list[int]) -> None:
    """bfloat16 keeps 8 bits: a rounding errs by 2⁻⁸ at most, by less than 2⁻⁹ in the root mean square. There are some
    tens along a path, on logits of deviation about 1. Angles keep all of their bits, also far away, where a rounded
    position would be another."""
    weights, tokens, places = random_weights(config), some_tokens(config, 2, len(positions)), torch.tensor(positions)
    rounded = to(weights, torch.bfloat16)
    found = llama(tokens, rounded, config, positions=places)
    assert found.dtype == torch.bfloat16
    exact = llama(tokens, to(rounded, torch.float64), config, positions=places)
    assert (found - exact).square().mean().sqrt() < 30 * 2**-9 * exact.std()


def test_far_positions_in_bfloat16_keep_their_angles() -> None:
    """Angles are float32 whatever the weights are: bfloat16 would round position 8,191 to 8,192."""
    config = CONFIGS["theta of Llama 3"]
    theta = equations.rope_frequencies(config, torch.empty(1, dtype=torch.bfloat16))
    near, far = torch.view_as_complex(equations.rotations(torch.tensor([[8191, 8192]]), theta))[0, 0]
    assert theta.dtype == torch.float32
    assert (near[0] / far[0]).angle().item() == pytest.approx(-1.0, abs=1e-3)


def test_rotations_beside_bfloat16_have_length_one_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is (cos, sin): in bfloat16 the length would be off by up to 2⁻⁸, in float32 it is by two roundings."""
    seen: list[Tensor] = []
    real = equations.rotate

    def rotate(x: Tensor, rotation: Tensor) -> Tensor:
        seen.append(rotation)
        return real(x, rotation)

    monkeypatch.setattr(equations, "rotate", rotate)
    config = CONFIGS["one for two"]
    weights, tokens = random_weights(config, dtype=torch.bfloat16), some_tokens(config, 1, 32)
    llama(tokens, weights, config)
    Llama.from_weights(weights, config)(tokens)
    assert len(seen) == 2 * 2 * config.layers
    for rotation in seen:
        assert (rotation.double().norm(dim=-1) - 1).abs().max() < 2 * 2**-24


def test_rms_norm_in_bfloat16_equals_transformers_bit_for_bit() -> None:
    """Statistics in float32, then rounded, then multiplied by the gain: in another order many last bits differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(100, 64).normal_(0, 0.01, generator=generator).bfloat16()
    theirs = LlamaRMSNorm(64, eps=1e-5).bfloat16()
    theirs.weight.data.uniform_(0.5, 1.5, generator=generator)
    assert torch.equal(equations.rms_norm(x, theirs.weight, 1e-5), theirs(x))


# --------------------------------------------------------------------------------------------- with a cache

EXACT = dict(rtol=1e-9, atol=1e-10)
"""For float64: the same sums in another order."""


def logits_in_pieces(tokens: Tensor, sizes: list[int], weights: Weights, config: Config) -> Tensor:
    """The logits of tokens that are read in pieces of these sizes, with a cache."""
    cache, pieces = empty_cache(config, len(tokens), tokens.shape[1], weights), []
    for piece in tokens.split(sizes, dim=1):
        logits, cache = llama(piece, weights, config, cache)
        pieces.append(logits)
    assert cache.length == tokens.shape[1]
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("sizes", [[1] * 24, [24], [10, 1, 1, 7, 5], [1, 23]], ids=str)
def test_cached_equals_whole(config: Config, sizes: list[int]) -> None:
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 3, 24)
    torch.testing.assert_close(
        logits_in_pieces(tokens, sizes, weights, config), llama(tokens, weights, config), **EXACT
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "seq"), [(1, 0), (0, 2), (0, 0)])
def test_empty_input_has_empty_logits(batch: int, seq: int, dtype: torch.dtype) -> None:
    config = CONFIGS["one for two"]
    weights, tokens = to(initialise(config), dtype), torch.zeros(batch, seq, dtype=torch.long)
    assert llama(tokens, weights, config).shape == (batch, seq, config.vocab_size)
    begun = torch.zeros(batch, 3, dtype=torch.long)
    _, cache = llama(begun, weights, config, empty_cache(config, batch, 5, weights))
    logits, cache = llama(tokens, weights, config, cache)
    assert logits.shape == (batch, seq, config.vocab_size)
    assert cache.length == 3 + seq


def test_an_old_cache_stays_valid() -> None:
    config = CONFIGS["one for two"]
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, 20)
    _, ten = llama(tokens[:, :10], weights, config, empty_cache(config, 1, 20, weights))
    once, _ = llama(tokens[:, 10:], weights, config, ten)
    again, _ = llama(tokens[:, 10:], weights, config, ten)
    assert torch.equal(once, again)
    assert ten.length == 10


def test_a_full_cache_is_an_error() -> None:
    config = CONFIGS["one for two"]
    weights = random_weights(config)
    with pytest.raises(ValueError, match="has 4 slots and 5 tokens"):
        llama(some_tokens(config, 1, 5), weights, config, empty_cache(config, 1, 4, weights))
    _, full = llama(some_tokens(config, 1, 4), weights, config, empty_cache(config, 1, 4, weights))
    with pytest.raises(ValueError, match="has 4 slots and 5 tokens"):
        llama(some_tokens(config, 1, 1), weights, config, full)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_unequal_length_in_a_batch_equal_separate_ones(config: Config, side: str) -> None:
    """Padding at position NOWHERE changes nothing, wherever it is; each row continues after its own last token."""
    weights = random_weights(config, dtype=torch.float64)
    lengths, seq = [3, 8, 5], 8
    rows = [some_tokens(config, 1, length + 4, seed=length)[0] for length in lengths]
    prompts, positions = torch.zeros(3, seq, dtype=torch.long), torch.full((3, seq), NOWHERE)
    places = [slice(0, n) if side == "right" else slice(seq - n, seq) for n in lengths]
    for number, place in enumerate(places):
        prompts[number, place] = rows[number][: lengths[number]]
        positions[number, place] = torch.arange(lengths[number])
    logits, cache = llama(prompts, weights, config, empty_cache(config, 3, seq + 4, weights), positions)
    assert logits.isfinite().all()
    more, _ = llama(torch.stack([row[-4:] for row in rows]), weights, config, cache)
    for number, row in enumerate(rows):
        separate = llama(row[None], weights, config)[0]
        torch.testing.assert_close(torch.cat((logits[number, places[number]], more[number])), separate, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_finite_in_every_dtype(dtype: torch.dtype) -> None:
    """It sees itself: a softmax over nothing would be 0/0, and such keys and values in the cache would spoil others."""
    config = CONFIGS["one for two"]
    weights = random_weights(config, dtype=dtype)
    positions = torch.tensor([[NOWHERE] * 3 + [0, 1], [0, 1, 2, 3, 4]])
    logits, cache = llama(some_tokens(config, 2, 5), weights, config, empty_cache(config, 2, 7, weights), positions)
    more, _ = llama(some_tokens(config, 2, 2), weights, config, cache)
    assert logits.isfinite().all()
    assert more.isfinite().all()


def test_written_out_attention_equals_fused(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 16, config.head_dim, generator=generator, dtype=torch.float64)
        for heads in (config.heads, config.kv_heads, config.kv_heads)
    )
    positions = torch.arange(16).expand(2, 16)
    mask = equations.visible(positions, positions)
    written = equations.attention_written_out(q, k, v, mask)
    torch.testing.assert_close(attention_fused(q, k, v, mask), written, **EXACT)
    torch.testing.assert_close(attention_fused(q, k, v, None), written, **EXACT)
    late = equations.visible(positions[:, 12:], positions)
    torch.testing.assert_close(attention_fused(q[:, :, 12:], k, v, late), written[:, :, 12:], **EXACT)


@pytest.mark.parametrize("attention_of", [equations.attention_written_out, attention_fused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_do_not_defeat_the_mask(dtype: torch.dtype, attention_of: Attention) -> None:
    """If all scores that a query sees are equal, huge and negative, its result is the mean of the values that it sees,
    although a score that it does not see is huge and positive."""
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(1, 2, 9, 8, generator=generator).to(dtype) for _ in "qv")
    k = torch.full_like(v, -torch.finfo(dtype).max / 1000)
    k[:, :, -1] *= -1
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    found = attention_of(q[:, :, :-1].abs(), k, v, mask[:, :, :-1])
    means = v.double().cumsum(2) / torch.arange(1, 10)[:, None]
    # Up to eight weights, their products and their sums are rounded.
    assert (found - means[:, :, :-1]).abs().max() < 8 * torch.finfo(dtype).eps * v.abs().max()


def test_the_softmax_of_bfloat16_is_that_of_float32_rounded_once() -> None:
    """Read from the result where the values are one-hot vectors. Sums in another order may change a rounding."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, 64, 64, generator=generator).bfloat16() for _ in "qk")
    found = equations.attention_written_out(q, k, torch.eye(64).bfloat16().expand(2, 2, -1, -1), None)
    scores = (q / 8 @ k.mT).float() + torch.full((64, 64), -math.inf).triu(1)
    assert (found == scores.softmax(-1).bfloat16()).float().mean() > 0.99


def orders(seq: int, slots: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Positions of the queries and of the keys of two texts: the queries are the newest of the keys."""
    in_order = torch.arange(slots).expand(2, -1)
    shuffled = torch.stack([torch.randperm(slots, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    padded = torch.where(torch.arange(slots) < torch.tensor([[slots], [slots - 9]]), in_order, NOWHERE)
    unfilled = torch.where(torch.arange(slots) < slots - 5, in_order, NOWHERE)
    found = {"in order": in_order, "shuffled": shuffled, "padded": padded, "unfilled": unfilled}
    return {name: (keys[:, slots - seq :], keys) for name, keys in found.items()}


@pytest.mark.parametrize("seq", [1, 128, 129, 300])
@pytest.mark.parametrize("order", ["in order", "shuffled", "padded", "unfilled"])
def test_attention_in_pieces_equals_the_definition(seq: int, order: str) -> None:
    generator, config = torch.Generator().manual_seed(0), CONFIGS["one for two"]
    definition = equations.attention_written_out
    q, k, v = (
        torch.randn(2, heads, n, config.head_dim, generator=generator, dtype=torch.float64)
        for heads, n in ((config.heads, seq), (config.kv_heads, 300), (config.kv_heads, 300))
    )
    mask = equations.visible(*orders(seq, 300)[order])
    written = definition(q, k, v, mask)
    torch.testing.assert_close(attention_in_pieces(q, k, v, mask, definition), written, **EXACT)
    if seq == 300 and order == "in order":
        torch.testing.assert_close(attention_in_pieces(q, k, v, None, definition), written, **EXACT)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    exact = definition(q.double(), k.double(), v.double(), mask)
    rounded = attention_in_pieces(q, k, v, mask, definition)
    # q / √d and then a score are rounded, each by u = 2⁻⁸ at most of ‖q‖‖k‖ / √d = s: 2us in all. So a score moves its
    # weight by 2us of it, and the sum that it is divided by moves as much. Weights and result are then rounded by u.
    s = q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() / math.sqrt(config.head_dim)
    allowed = 2**-8 * (4 * s + 2) * definition(q.double(), k.double(), v.double().abs(), mask)
    assert ((rounded - exact).abs() < allowed).all()


@pytest.mark.parametrize(
    ("old", "new", "known"),
    [
        ('"""softmax', '"""Changed. softmax', True),
        ("    scores =", "    # changed\n    scores =", True),
        (".tril()", ".triu()", False),
        ("math.sqrt(q.shape[-1])", "8", False),
        ("(p @", "(2 * p @", False),
    ],
)
def test_another_definition_of_attention_is_computed_as_it_is_written(
    old: str, new: str, known: bool, tmp_path: Path
) -> None:
    """A reader changes llama.py, and trains and generates by what it says now."""
    text = Path(equations.__file__).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "changed.py").write_text(text.replace(old, new), encoding="utf-8")
    changed = run_path(str(tmp_path / "changed.py"))["attention_written_out"]
    assert is_known(changed) == known
    assert tuple(digests(getsource(equations.attention_written_out))) == DEFINITION
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 4, generator=generator) for heads in (4, 2, 2))
    positions = torch.arange(9).expand(1, 9)
    masks = None, equations.visible(positions, positions), equations.visible(positions[:, 8:], positions)
    for mask, queries in zip(masks, (q, q, q[:, :, 8:]), strict=True):
        written = changed(queries, k, v, mask)
        torch.testing.assert_close(attention_fast(queries, k, v, mask, changed), written)
        as_before = equations.attention_written_out(queries, k, v, mask)
        assert known == torch.allclose(written, as_before) or (old == ".tril()" and mask is not None)


def test_what_is_around_the_definition_of_attention_is_computed_too() -> None:
    """But for the checks of types that are around it in these tests."""
    definition = equations.attention_written_out
    assert is_known(definition)

    class Twice:
        def __call__(self, *arguments: Any) -> Tensor:
            return 2 * definition(*arguments)

    @wraps(definition)
    def twice(*arguments: Any) -> Tensor:
        return 2 * definition(*arguments)

    q, k, v = (torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for other in (twice, Twice(), partial(twice)):
        torch.testing.assert_close(attention_fast(q, k, v, None, other), 2 * definition(q, k, v, None))


def test_rotation_by_complex_numbers_equals_real_ones(config: Config) -> None:
    q = torch.randn(2, config.heads, len(FAR), config.head_dim, dtype=torch.float64)
    rotation = equations.rotations(torch.tensor(FAR).expand(2, -1), equations.rope_frequencies(config, q))
    torch.testing.assert_close(equations.rotate(q, rotation), equations.rotate_real(q, rotation), **EXACT)


# --------------------------------------------------------------------------------------------- invariants


def test_no_logit_depends_on_a_later_token(config: Config) -> None:
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, 12)
    before = llama(tokens, weights, config)[0]
    for changed in range(12):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % config.vocab_size
        after = llama(other, weights, config)[0]
        assert torch.equal(after[:changed], before[:changed])
        assert (after[changed:] != before[changed:]).any(-1).all()


def test_every_parameter_gets_a_gradient(config: Config) -> None:
    weights, tokens = initialise(config), torch.arange(config.vocab_size)[None]
    for leaf in leaves(weights):
        leaf.requires_grad_()
    F.cross_entropy(llama(tokens, weights, config)[0], tokens[0].roll(-1)).backward()
    for path, leaf in named_leaves(weights):
        gradient = leaf.grad if leaf.dim() == 1 else leaf.grad.abs().sum(-1)
        assert (gradient != 0).all(), path


def test_silu_has_gradients_at_both_ends() -> None:
    """z / (1 + e⁻ᶻ), written so, has no gradient where e⁻ᶻ is infinite."""
    z = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    gate, up = torch.eye(6)[:5], torch.eye(6)[[5]].expand(5, 6)  # the gate is z, and up is the 1 after it
    x = torch.cat((z, torch.ones(1)))[None, None].requires_grad_()
    equations.swiglu(x, FeedForwardWeights(gate, up, gate.T)).sum().backward()
    slopes = torch.tensor([0, 0, 0.5, 1, 1])
    torch.testing.assert_close(x.grad[0, 0, :5], slopes)
    z = z[None, None].requires_grad_()
    SwiGLU()(z, torch.ones_like(z)).sum().backward()
    torch.testing.assert_close(z.grad[0, 0], slopes)


@given(m=st.integers(0, 100_000), n=st.integers(0, 100_000), shift=st.integers(0, 100_000), seed=st.integers(0, 99))
def test_rotation_keeps_lengths_and_depends_on_distance_only(m: int, n: int, shift: int, seed: int) -> None:
    config = CONFIGS["scaling of Llama 3.1"]
    q, k = torch.randn(2, 1, 1, 1, config.head_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = equations.rope_frequencies(config, q)

    def at(x: Tensor, position: int) -> Tensor:
        return equations.rotate(x, equations.rotations(torch.tensor([[position]]), theta))

    assert at(q, m).norm().item() == pytest.approx(q.norm().item(), rel=1e-12)
    here, there = (at(q, m) * at(k, n)).sum(), (at(q, m + shift) * at(k, n + shift)).sum()
    assert here.item() == pytest.approx(there.item(), abs=1e-8)  # angles up to 2·10⁵, each rounded to 3e-11


@pytest.mark.parametrize(
    ("config", "short", "long", "factor"),
    [(CONFIGS["scaling of Llama 3.1"], 2048, 8192, 8), (RESCALED, 512, 2048, 16)],
    ids=["Llama 3.1", "another"],
)
def test_frequencies_by_hand(config: Config, short: int, long: int, factor: int) -> None:
    """Three regimes: wavelengths up to `short` stay, from `long`, four times that, on are `factor` times as long."""
    plain = [500_000 ** (-pair / 8) for pair in range(8)]
    scaled = equations.rope_frequencies(config, torch.empty(1, dtype=torch.float64)).tolist()
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < short:
            assert after == pytest.approx(before, rel=1e-12)
        elif wavelength > long:
            assert after == pytest.approx(before / factor, rel=1e-12)
        else:
            smooth = (long / wavelength - 1) / 3
            assert after == pytest.approx((1 - smooth) * before / factor + smooth * before, rel=1e-12)


def test_dropout_only_in_training() -> None:
    config = Config(**CONFIGS["one for two"].__dict__ | dict(dropout=0.25))
    weights, tokens = random_weights(config), some_tokens(config, 1, 16)
    inference = llama(tokens, weights, config)
    assert torch.equal(inference, llama(tokens, weights, CONFIGS["one for two"]))
    first, same, other = (
        llama(tokens, weights, config, dropout=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, inference)
    x = torch.ones(200_000)
    dropped = equations.drop(x, 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    # Five deviations of a mean of 200,000 Bernoulli draws, √(.25·.75/200000)/.75 each.
    assert dropped.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(0.25 * 0.75 / 200_000) / 0.75)
