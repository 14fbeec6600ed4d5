"""The JAX spelling against PyTorch, against the NumPy oracle, and in training step by step."""

import sys
from collections.abc import Iterator
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
from llucid.config import PRESETS, Config  # noqa: E402
from llucid.errors import LlucidError  # noqa: E402
from llucid.generation.decode import decode  # noqa: E402
from llucid.llama import llama  # noqa: E402
from llucid.llama_jax import from_torch, to_torch  # noqa: E402
from llucid.training import jax_step  # noqa: E402
from llucid.training.optimizer import (  # noqa: E402
    learning_rate,
    make_optimizers,
    optimizer_tensors,
    restore_optimizers,
)
from llucid.training.settings import Settings  # noqa: E402
from llucid.training.step import loss_sum, train_step  # noqa: E402
from llucid.weights import Weights, assemble, initialise, leaves, named_leaves, tree_map  # noqa: E402
from tests.configs import CONFIGS  # noqa: E402
from tests.oracles import numpy_llama  # noqa: E402
from tests.test_llama import FAR, lively, some_tokens  # noqa: E402

logits_of = jax.jit(llama_jax.llama, static_argnames="config")
loss_of = jax.jit(llama_jax.loss, static_argnames="config")
loss_and_gradients = jax.jit(jax.value_and_grad(llama_jax.loss, argnums=2), static_argnames="config")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


@pytest.fixture(autouse=True)
def _compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Arrays are so small that compiling well takes longer than computing, except where there are hundreds of steps."""
    jax.config.update("jax_disable_most_optimizations", "hundreds" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def hundreds() -> None:
    """Of steps: worth compiling well."""


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# --------------------------------------------------------------------------------------------- with the other spellings


@pytest.mark.usefixtures("float64")
def test_equals_pytorch_and_numpy_in_float64(config: Config) -> None:
    """Values at far positions, and all gradients. 1e-10 is 10⁶ roundings of float64: room for another order of sums,
    none for another formula."""
    weights, tokens = lively(config, dtype=torch.float64), some_tokens(config, 2, len(FAR) + 1)
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
    assert expected.std() > 0.3  # logits that hardly differ would agree by accident
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
    weights, tokens = lively(config, dtype=torch.float64), some_tokens(config, 1, 17).numpy()
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    arrays = tree_map(lambda leaf: leaf.numpy(), weights)
    expected_loss, expected = numpy_llama.loss_and_gradients(inputs[0], targets[0], arrays, config)
    loss, found = loss_and_gradients(inputs, targets, from_torch(weights), config=config)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-12)
    for (path, gradient), oracle in zip(named_leaves(found), leaves(expected), strict=True):
        np.testing.assert_allclose(gradient, oracle, rtol=1e-10, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_fewer_bits_it_is_within_their_rounding(dtype: torch.dtype) -> None:
    """Against PyTorch in float64 on the same rounded weights: some tens of roundings along a path, on logits of
    deviation about 1."""
    config = CONFIGS["scaling of Llama 3.1"]
    weights, tokens = lively(config, dtype=dtype), some_tokens(config, 1, len(FAR))
    found = logits_of(jnp.array(tokens[0]), from_torch(weights), config, jnp.array(FAR))
    assert found.dtype.name == str(dtype).removeprefix("torch.")
    exact = llama(tokens, tree_map(Tensor.double, weights), config, positions=torch.tensor(FAR))[0].numpy()
    # An angle m·θ is itself rounded to float32, whose last bit is 0.002 at position 32,767.
    allowed = 30 * 2**-9 if dtype == torch.bfloat16 else 2e-3
    difference = np.asarray(found, np.float64) - exact
    assert np.sqrt((difference**2).mean()) < allowed * exact.std()


def test_loss_counts_what_is_to_be_counted() -> None:
    """Also in float32: equal to PyTorch's sum over its number of tokens, −100 left out."""
    config = CONFIGS["one for two"]
    weights, tokens = lively(config), some_tokens(config, 3, 13)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, :5] = -100
    found = loss_of(jnp.array(inputs), jnp.array(targets), from_torch(weights), config=config)
    assert float(found) == pytest.approx(loss_sum(inputs, targets, weights, config).item() / (3 * 12 - 5), rel=1e-5)


# --------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_weights_come_back_as_they_went(dtype: torch.dtype) -> None:
    config = CONFIGS["one for all, tied"]
    weights = lively(config, dtype=dtype)
    with jax.enable_x64(dtype == torch.float64):
        there = from_torch(weights)
        assert {leaf.dtype.name for leaf in leaves(there)} == {str(dtype).removeprefix("torch.")}
        back = to_torch(there)
        before = tree_map(Tensor.clone, weights)
        for leaf in leaves(weights):
            leaf.zero_()  # what changes in PyTorch does not reach JAX
        again = to_torch(there)
    assert isinstance(back, Weights)
    assert back.output is None
    for (path, leaf), returned, late in zip(named_leaves(before), leaves(back), leaves(again), strict=True):
        assert leaf.dtype == returned.dtype
        assert torch.equal(leaf, returned), path
        assert torch.equal(leaf, late), path


@pytest.mark.parametrize(
    ("missing", "module"), [("jax", "llucid.llama_jax"), ("optax", "llucid.training.jax_step")], ids=str
)
def test_what_is_missing_is_said(missing: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(LlucidError, match=r"pip install llucid\[jax\]"):
        import_module(module)


# --------------------------------------------------------------------------------------------- one function at a time


@pytest.mark.usefixtures("float64")
def test_rope_equals_pytorchs(config: Config) -> None:
    """Also in the order of its numbers, which no logit shows."""
    x, positions = torch.randn(len(FAR), config.head_dim, dtype=torch.float64), torch.tensor(FAR)
    theta = equations.rope_frequencies(config, x)
    expected = equations.rotate(x[None, None], equations.rotations(positions[None], theta))[0, 0]
    found = jax.vmap(llama_jax.rope, (0, 0, None))(
        jnp.array(x), jnp.array(positions), llama_jax.rope_frequencies(config, np.float64)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_rope_keeps_lengths_and_sees_distance_only() -> None:
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
    weights, tokens = from_torch(lively(config)), jnp.array(some_tokens(config, 1, 12)[0])
    before = logits_of(tokens, weights, config)
    for changed in (0, 5, 11):
        other = tokens.at[changed].set((tokens[changed] + 1) % config.vocab_size)
        after = logits_of(other, weights, config)
        assert (after[:changed] == before[:changed]).all()
        assert (after[changed:] != before[changed:]).any(-1).all()


# --------------------------------------------------------------------------------------------- writing


def greedy(weights: Weights, config: Config, prompt: list[int], max_tokens: int) -> list[int]:
    """What PyTorch's engine writes."""
    steps = decode(
        weights,
        config,
        [prompt],
        choose=lambda logits: logits.argmax(-1),
        stops=lambda row, token: False,
        max_tokens=max_tokens,
    )
    return [int(step.tokens[0] or 0) for step in steps]


@pytest.mark.parametrize("name", ["one for two", "scaling of Llama 3.1"])
def test_greedy_text_is_pytorchs(name: str) -> None:
    config = CONFIGS[name]
    weights, prompts = lively(config), some_tokens(config, 4, 7)
    expected = [greedy(weights, config, prompt.tolist(), 40) for prompt in prompts]
    theirs = from_torch(weights)
    assert [llama_jax.generate(jnp.array(prompt), theirs, config, 40).tolist() for prompt in prompts] == expected
    assert len({tuple(text) for text in expected}) == 4  # one text whatever is asked would be equal by accident


def test_temperature_draws_in_proportion() -> None:
    """At temperature 2, in proportion to e^(score/2): 4,000 draws, each share within five deviations."""
    config = replace(CONFIGS["one for two"], vocab_size=4)
    weights, prompt = from_torch(lively(config)), jnp.array([1, 2, 3])
    seeds = jnp.arange(4000)
    drawn = jax.vmap(lambda seed: llama_jax.generate(prompt, weights, config, 1, 2.0, seed)[0])(seeds)
    expected = np.asarray(jax.nn.softmax(logits_of(prompt, weights, config)[-1] / 2))
    assert expected.max() - expected.min() > 0.05
    found = np.bincount(drawn, minlength=4) / 4000
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_a_text_longer_than_the_context_is_refused() -> None:
    config = CONFIGS["one for two"]
    weights = from_torch(lively(config))
    with pytest.raises(LlucidError, match="60 tokens and max_tokens=5"):
        llama_jax.generate(jnp.zeros(60, int), weights, config, 5)
    with pytest.raises(LlucidError, match="prompt of 0 tokens"):
        llama_jax.generate(jnp.zeros(0, int), weights, config, 5)


def stories260k(data: Path) -> tuple[Weights, Config]:
    """llama2.c's first format: 7 integers, then float32 arrays, each for all layers at once."""
    config = PRESETS["stories260K"].config
    raw = np.fromfile(data / "stories260K.bin", np.float32)
    header = raw[:7].view(np.int32).tolist()
    assert header == [config.dim, config.ffn_dim, config.layers, config.heads, config.kv_heads, 512, config.context]
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    dim, ffn, at = config.dim, config.ffn_dim, 7
    stacks = {}
    for name, shape in [
        ("attention_norm", (dim,)),
        ("attention.query", (q, dim)),
        ("attention.key", (kv, dim)),
        ("attention.value", (kv, dim)),
        ("attention.output", (dim, q)),
        ("feed_forward_norm", (dim,)),
        ("feed_forward.gate", (ffn, dim)),
        ("feed_forward.down", (dim, ffn)),
        ("feed_forward.up", (ffn, dim)),
    ]:
        begin = at + (config.vocab_size * dim)
        size = config.layers * int(np.prod(shape))
        stacks[name] = raw[begin : begin + size].reshape(config.layers, *shape)
        at += size
    last = at + config.vocab_size * dim

    def leaf(path: str, shape: tuple[int, ...]) -> Tensor:
        if path == "embedding":
            return torch.tensor(raw[7 : 7 + config.vocab_size * dim].reshape(shape))
        if path == "norm":
            return torch.tensor(raw[last : last + dim])
        _, layer, name = path.split(".", 2)
        return torch.tensor(stacks[name][int(layer)])

    return assemble(config, leaf), config


@pytest.mark.usefixtures("hundreds")
def test_stories260k_is_told_as_by_pytorch(data: Path) -> None:
    """200 greedy tokens; and loss and gradients of that text, which a trained model finds likely, as the oracle's."""
    weights, config = stories260k(data)
    expected = greedy(weights, config, [1], 200)
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


# --------------------------------------------------------------------------------------------- training

NANO = replace(PRESETS["nano"].config, context=32)
STEPS = 200
SETTINGS = Settings(steps=STEPS, learning_rate=8e-3, optimizer="adamw")


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Eight rows that count up by 1, 2 or 3, from anywhere, with one token in eight at random."""
    generator = torch.Generator().manual_seed(step)
    begin = torch.randint(65, (8, 1), generator=generator)
    stride = torch.randint(1, 4, (8, 1), generator=generator)
    rows = (begin + stride * torch.arange(33)) % 65
    noise = torch.randint(65, rows.shape, generator=generator)
    rows = torch.where(torch.rand(rows.shape, generator=generator) < 1 / 8, noise, rows)
    return rows[:, :-1], rows[:, 1:]


def followed(settings: Settings, dtype: torch.dtype, first: int = 0, last: int = STEPS, hand_over: int = 0) -> Tensor:
    """Losses of each step, [2, steps]: PyTorch's, and JAX's from the same initial weights on the same batches.

    JAX takes over from PyTorch (weights, what AdamW remembers) before step `hand_over`.
    """
    weights = tree_map(lambda leaf: leaf.to(dtype).requires_grad_(), initialise(NANO))
    optimizers = make_optimizers(weights, settings)
    losses: tuple[list[float], list[float]] = ([], [])
    for step in range(first, last):
        if step == hand_over:
            theirs = from_torch(weights)
            memory = jax_step.start(theirs, NANO, settings)
            if step:
                memory = jax_step.restore_memory(optimizer_tensors(optimizers), NANO)
        inputs, targets = batch(step)
        share = learning_rate(step / STEPS, settings.warmup, settings.final)
        loss = train_step(inputs, targets, weights, NANO, optimizers, share=share, clip=settings.clip, dtype=dtype)
        if step >= hand_over:
            found, theirs, memory = jax_step.train_step(
                inputs.numpy(), targets.numpy(), theirs, memory, NANO, settings, share
            )
            losses[0].append(loss.item())
            losses[1].append(float(found))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.usefixtures("hundreds")
def test_training_follows_pytorch_step_by_step() -> None:
    """200 steps in float32, at the rate of the nano recipe; the largest difference measured is 2.1e-6.

    A loss of 2 to 4 has a last bit of 2.4e-7. Each step rounds anew and training carries the differences on, so 1e-5
    is 40 last bits. (On noisier text at this rate training is chaotic: the same difference in float64, 1e-15, grows
    some 10⁵ times in 200 steps, so that in float32 the two losses part in the second digit; at 1e-3 they do not.)
    """
    expected, found = followed(SETTINGS, torch.float32)
    assert expected[-1] < expected[0] / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hand_over", [0, 15])
def test_training_follows_pytorch_in_float64(hand_over: int) -> None:
    """From the start, and from PyTorch's saved state on. 1e-13 is some 200 last bits, and 2e-15 was measured: where ε
    or the decay stands, shows. The gradients are always shortened."""
    expected, found = followed(replace(SETTINGS, clip=0.1), torch.float64, last=30, hand_over=hand_over)
    assert expected.shape == (30 - hand_over,)
    assert expected[-1] < 4.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_pytorch_goes_on_where_jax_stopped() -> None:
    """The memory has the names and shapes of PyTorch's, survives the way there and back, and holds the same values."""
    config = replace(NANO, layers=1, tied_embeddings=True)
    weights = tree_map(Tensor.requires_grad_, initialise(config))
    theirs, optimizers = from_torch(weights), make_optimizers(weights, SETTINGS)
    memory = jax_step.start(theirs, config, SETTINGS)
    for step in range(2):
        inputs, targets = batch(step)
        train_step(inputs, targets, weights, config, optimizers)
        _, theirs, memory = jax_step.train_step(inputs.numpy(), targets.numpy(), theirs, memory, config, SETTINGS)
    expected, found = optimizer_tensors(optimizers), jax_step.memory_tensors(memory, config)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name + text)

    restore_optimizers(again := make_optimizers(weights, SETTINGS), found)
    assert all(torch.equal(found[name], tensor) for name, tensor in optimizer_tensors(again).items())
    there_and_back = jax_step.restore_memory(found, config)
    assert jax.tree.structure(there_and_back) == jax.tree.structure(memory)
    assert all(
        (one == two).all() for one, two in zip(jax.tree.leaves(there_and_back), jax.tree.leaves(memory), strict=True)
    )


def test_in_bfloat16_weights_and_sums_stay_float32() -> None:
    """A loss of 4.2 from bfloat16 logits, whose last bit is 2⁻⁹ of themselves: equal to PyTorch's in that."""
    config = replace(NANO, layers=1)
    weights = tree_map(Tensor.requires_grad_, initialise(config))
    settings = replace(SETTINGS, dtype="bfloat16")
    theirs = from_torch(weights)
    memory = jax_step.start(theirs, config, settings)
    inputs, targets = batch(0)
    expected = train_step(
        inputs, targets, weights, config, make_optimizers(weights, settings), share=0.1, dtype=torch.bfloat16
    )
    found, theirs, memory = jax_step.train_step(inputs.numpy(), targets.numpy(), theirs, memory, config, settings, 0.1)
    assert float(found) == pytest.approx(expected.item(), rel=1e-3)
    exact = loss_sum(inputs, targets, initialise(config), config).item() / targets.numel()
    assert abs(float(found) - exact) > 3e-6  # six last bits of float32: it really was bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves((found, theirs, memory))} == {"float32", "int32"}


@pytest.mark.parametrize(
    ("change", "numbers", "said"),
    [
        ({"optimizer": "muon"}, {}, "--optimizer muon"),
        ({"accumulate": 2}, {}, "--accumulate 2"),
        ({}, {"dropout": 0.1}, "--model.dropout 0.1"),
    ],
    ids=str,
)
def test_what_only_pytorch_does_is_refused(change: dict, numbers: dict, said: str) -> None:
    with pytest.raises(LlucidError, match=said):
        jax_step.start(from_torch(initialise(NANO)), replace(NANO, **numbers), replace(SETTINGS, **change))
