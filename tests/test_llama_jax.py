"""The JAX spelling against PyTorch and against the NumPy oracle: values, gradients and greedy text."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

jax = pytest.importorskip("jax", reason="the extra 'jax' is not installed")
pytest.importorskip("optax", reason="the extra 'jax' is not installed")

import jax.numpy as jnp  # noqa: E402

from llucid import llama as equations  # noqa: E402
from llucid import llama_jax  # noqa: E402
from llucid.checkpoints import load  # noqa: E402
from llucid.config import Config  # noqa: E402
from llucid.errors import LlucidError  # noqa: E402
from llucid.llama import llama  # noqa: E402
from llucid.llama_jax import from_torch, to_torch  # noqa: E402
from llucid.training.step import loss_sum  # noqa: E402
from llucid.weights import Weights, leaves, named_leaves, tree_map  # noqa: E402
from tests.configs import CONFIGS, RESCALED  # noqa: E402
from tests.engine import greedy  # noqa: E402
from tests.oracles import numpy_llama  # noqa: E402
from tests.test_llama import FAR, random_weights, some_tokens  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_quickly")
logits_of = jax.jit(llama_jax.llama, static_argnames="config")
loss_of = jax.jit(llama_jax.loss, static_argnames="config")
loss_and_gradients = jax.jit(jax.value_and_grad(llama_jax.loss, argnums=2), static_argnames="config")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


# --------------------------------------------------------------------------------------------- with the other spellings


@pytest.mark.usefixtures("float64")
def test_equals_pytorch_and_numpy_in_float64(config: Config) -> None:
    """Values at far positions, and all gradients. 1e-10 is 10⁶ roundings of float64: room for another order of sums,
    none for another formula."""
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 2, len(FAR) + 1)
    positions = jnp.array(FAR)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def loss_at_far_positions(weights: Weights) -> tuple[jax.Array, jax.Array]:
        logits = jax.vmap(lambda row: llama_jax.llama(row, weights, config, positions))(jnp.array(inputs))
        return jax.vmap(jax.vmap(llama_jax.surprise))(logits, jnp.array(targets)).mean(), logits

    (loss, found), gradients = jax.jit(jax.value_and_grad(loss_at_far_positions, has_aux=True))(from_torch(weights))
    for leaf in leaves(weights):
        leaf.requires_grad_()
    expected = llama(inputs, weights, config, positions=torch.tensor(FAR))
    expected_loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    expected_loss.backward()

    assert found.dtype == np.float64
    assert expected.std() > 0.3  # nearly equal logits would agree by accident
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-10, atol=1e-10)
    assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-12)
    for (path, leaf), gradient in zip(named_leaves(weights), leaves(gradients), strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-10, err_msg=path)

    arrays = tree_map(lambda leaf: leaf.detach().numpy(), weights)
    oracle = numpy_llama.logits(inputs[0].numpy(), arrays, config, np.array(FAR))
    np.testing.assert_allclose(found[0], oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_loss_and_gradients_equal_numpy_oracle() -> None:
    config = CONFIGS["one for all, tied"]
    weights, tokens = random_weights(config, dtype=torch.float64), some_tokens(config, 1, 17).numpy()
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    arrays = tree_map(lambda leaf: leaf.numpy(), weights)
    expected_loss, expected = numpy_llama.loss_and_gradients(inputs[0], targets[0], arrays, config)
    loss, found = loss_and_gradients(inputs, targets, from_torch(weights), config=config)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-12)
    for (path, gradient), oracle in zip(named_leaves(found), leaves(expected), strict=True):
        np.testing.assert_allclose(gradient, oracle, rtol=1e-10, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_dtypes_are_within_their_rounding(dtype: torch.dtype) -> None:
    """Against PyTorch in float64 on the same rounded weights: some tens of roundings along a path, on logits of
    deviation about 1."""
    config = CONFIGS["scaling of Llama 3.1"]
    weights, tokens = random_weights(config, dtype=dtype), some_tokens(config, 1, len(FAR))
    found = logits_of(jnp.array(tokens[0]), from_torch(weights), config, jnp.array(FAR))
    assert found.dtype.name == str(dtype).removeprefix("torch.")
    exact = llama(tokens, tree_map(Tensor.double, weights), config, positions=torch.tensor(FAR))[0].numpy()
    # An angle m·θ is itself rounded to float32, whose last bit is 0.002 at position 32,767.
    allowed = 30 * 2**-9 if dtype == torch.bfloat16 else 2e-3
    difference = np.asarray(found, np.float64) - exact
    assert np.sqrt((difference**2).mean()) < allowed * exact.std()


def test_loss_equals_that_of_pytorch() -> None:
    """In float32: equal to PyTorch's sum divided by the number of tokens, without those of −100."""
    config = CONFIGS["one for two"]
    weights, tokens = random_weights(config), some_tokens(config, 3, 13)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, :5] = -100
    found = loss_of(jnp.array(inputs), jnp.array(targets), from_torch(weights), config=config)
    assert float(found) == pytest.approx(loss_sum(inputs, targets, weights, config).item() / (3 * 12 - 5), rel=1e-5)


# --------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_weights_survive_the_round_trip(dtype: torch.dtype) -> None:
    config = CONFIGS["one for all, tied"]
    weights = random_weights(config, dtype=dtype)
    with jax.enable_x64(dtype == torch.float64):
        there = from_torch(weights)
        assert {leaf.dtype.name for leaf in leaves(there)} == {str(dtype).removeprefix("torch.")}
        back = to_torch(there)
        before = tree_map(Tensor.clone, weights)
        for leaf in leaves(weights):
            leaf.zero_()  # a change in PyTorch does not reach JAX
        again = to_torch(there)
    assert isinstance(back, Weights)
    assert back.output is None
    for (path, leaf), returned, late in zip(named_leaves(before), leaves(back), leaves(again), strict=True):
        assert leaf.dtype == returned.dtype
        assert torch.equal(leaf, returned), path
        assert torch.equal(leaf, late), path


@pytest.mark.parametrize(
    ("missing", "module"), [("jax", "llucid.llama_jax"), ("optax", "llucid.training.backend_jax")], ids=str
)
def test_a_missing_library_is_named(missing: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(LlucidError, match=r"pip install llucid\[jax\]"):
        import_module(module)


# --------------------------------------------------------------------------------------------- one function at a time


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("config", [*CONFIGS.values(), RESCALED], ids=[*CONFIGS, "another scaling"])
def test_rope_equals_pytorchs(config: Config) -> None:
    """Also the order of the numbers, which logits do not show."""
    x, positions = torch.randn(len(FAR), config.head_dim, dtype=torch.float64), torch.tensor(FAR)
    theta = equations.rope_frequencies(config, x)
    expected = equations.rotate(x[None, None], equations.rotations(positions[None], theta))[0, 0]
    found = jax.vmap(llama_jax.rope, (0, 0, None))(
        jnp.array(x), jnp.array(positions), llama_jax.rope_frequencies(config, np.float64)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10, atol=1e-10)


def test_rms_norm_in_bfloat16_equals_pytorchs() -> None:
    """Statistics in float32, then rounded, then multiplied by the gain. The root is computed differently, so a float32
    may differ in its last bits, and about one in a thousand then rounds to another bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, gain = torch.randn(100, 64, generator=generator).bfloat16(), torch.rand(64, generator=generator).bfloat16()
    theirs = (jnp.array(array.float().numpy(), jnp.bfloat16) for array in (x, gain))
    found = jax.vmap(llama_jax.rms_norm, (0, None, None))(*theirs, 1e-5)
    expected = equations.rms_norm(x, gain, 1e-5).float().numpy()
    assert (np.asarray(found, np.float32) == expected).mean() > 0.99


def test_the_softmax_of_bfloat16_is_that_of_float32_rounded_once() -> None:
    """Read from the result where the values are one-hot vectors. Sums in another order may change a rounding."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(64, 64, generator=generator).bfloat16() for _ in "qk")
    theirs = (jnp.array(array.float().numpy(), jnp.bfloat16) for array in (q, k, torch.eye(64)))
    found = jax.vmap(llama_jax.attend, (0, None, None, 0, None))(*theirs, jnp.arange(64), jnp.arange(64))
    scores = (q / 8 @ k.mT).float() + torch.full((64, 64), -torch.inf).triu(1)
    assert (np.asarray(found, np.float32) == scores.softmax(-1).bfloat16().float().numpy()).mean() > 0.99


def test_extreme_scores_do_not_defeat_the_mask() -> None:
    k = jnp.full((9, 8), -1e35).at[-1].set(1e35)
    v = jnp.arange(72.0).reshape(9, 8)
    found = llama_jax.attend(jnp.ones(8), k, v, jnp.array(7), jnp.arange(9))
    np.testing.assert_allclose(found, v[:8].mean(0), rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_rope_keeps_lengths_and_depends_on_distance_only() -> None:
    generator = np.random.default_rng(0)
    q, k = generator.normal(size=(2, 1000, 16))
    m, n, shift = generator.integers(0, 100_000, size=(3, 1000))
    theta = llama_jax.rope_frequencies(CONFIGS["scaling of Llama 3.1"], np.float64)
    at = jax.vmap(llama_jax.rope, (0, 0, None))
    np.testing.assert_allclose(
        np.linalg.norm(at(q, m, theta), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-12, err_msg="length"
    )
    here = (at(q, m, theta) * at(k, n, theta)).sum(-1)
    there = (at(q, m + shift, theta) * at(k, n + shift, theta)).sum(-1)
    np.testing.assert_allclose(here, there, atol=1e-8)  # angles up to 2·10⁵, each rounded to 3e-11


def test_silu_has_gradients_at_both_ends() -> None:
    z = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    slopes = jax.vmap(jax.grad(lambda z: llama_jax.silu(z[None])[0]))(z)
    np.testing.assert_allclose(slopes, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_no_logit_depends_on_a_later_token() -> None:
    config = CONFIGS["one for two"]
    weights, tokens = from_torch(random_weights(config)), jnp.array(some_tokens(config, 1, 12)[0])
    before = logits_of(tokens, weights, config)
    for changed in (0, 5, 11):
        other = tokens.at[changed].set((tokens[changed] + 1) % config.vocab_size)
        after = logits_of(other, weights, config)
        assert (after[:changed] == before[:changed]).all()
        assert (after[changed:] != before[changed:]).any(-1).all()


# --------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("seq", [0, 2])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_input_has_empty_logits(rows: int, seq: int) -> None:
    config = CONFIGS["one for two"]
    weights, tokens = from_torch(random_weights(config)), jnp.zeros((rows, seq), int)
    for positions in (None, jnp.arange(seq)):
        logits = jax.vmap(lambda row, at=positions: llama_jax.llama(row, weights, config, at))(tokens)
        assert logits.shape == (rows, seq, config.vocab_size)


@pytest.mark.parametrize("name", ["one for two", "scaling of Llama 3.1"])
def test_greedy_text_is_pytorchs(name: str) -> None:
    config = CONFIGS[name]
    weights, prompts = random_weights(config), some_tokens(config, 4, 7)
    expected = greedy(weights, config, prompts.tolist(), 40)
    theirs = from_torch(weights)
    assert [llama_jax.generate(jnp.array(prompt), theirs, config, 40).tolist() for prompt in prompts] == expected
    assert len({tuple(text) for text in expected}) == 4  # equal texts for all prompts would prove nothing


def test_temperature_draws_in_proportion() -> None:
    """At temperature 2, in proportion to e^(score/2): 4,000 draws, each share within five deviations."""
    config = replace(CONFIGS["one for two"], vocab_size=4)
    weights, prompt = from_torch(random_weights(config)), jnp.array([1, 2, 3])
    seeds = jnp.arange(4000)
    drawn = jax.vmap(lambda seed: llama_jax.generate(prompt, weights, config, 1, 2.0, seed)[0])(seeds)
    expected = np.asarray(jax.nn.softmax(logits_of(prompt, weights, config)[-1] / 2))
    assert expected.max() - expected.min() > 0.05
    found = np.bincount(drawn, minlength=4) / 4000
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_a_text_longer_than_the_context_is_refused() -> None:
    config = CONFIGS["one for two"]
    weights = from_torch(random_weights(config))
    with pytest.raises(LlucidError, match="60 tokens and max_tokens=5"):
        llama_jax.generate(jnp.zeros(60, int), weights, config, 5)
    with pytest.raises(LlucidError, match="prompt of 0 tokens"):
        llama_jax.generate(jnp.zeros(0, int), weights, config, 5)


@pytest.mark.usefixtures("compiled_well")
def test_the_story_of_stories260k_equals_that_of_pytorch(data: Path) -> None:
    """200 greedy tokens; and loss and gradients of that text, which a trained model finds likely, as the oracle's."""
    config, weights = load(data / "stories260K.bin", device="cpu", tokenizer=data / "tok512.bin")[:2]
    (expected,) = greedy(weights, config, [[1]], 200)
    found = llama_jax.generate(jnp.array([1]), from_torch(weights), config, 200).tolist()
    assert found == expected
    text = np.array([1, *expected])
    with jax.enable_x64(True):
        wide = tree_map(Tensor.double, weights)
        loss, gradients = loss_and_gradients(text[None, :-1], text[None, 1:], from_torch(wide), config=config)
        arrays = tree_map(lambda leaf: leaf.numpy(), wide)
        oracle_loss, oracle = numpy_llama.loss_and_gradients(text[:-1], text[1:], arrays, config)
    assert oracle_loss < 1.0
    assert float(loss) == pytest.approx(oracle_loss, rel=1e-12)
    for (path, gradient), expected_gradient in zip(named_leaves(gradients), leaves(oracle), strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-10, err_msg=path)
