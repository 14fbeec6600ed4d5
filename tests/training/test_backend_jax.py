"""Training in JAX: equal to PyTorch and to NumPy at every step, and as a run of `llucid train --backend jax`."""

import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

jax = pytest.importorskip("jax", reason="the extra 'jax' is not installed")
pytest.importorskip("optax", reason="the extra 'jax' is not installed")

import llucid  # noqa: E402
from llucid.config import Config  # noqa: E402
from llucid.errors import LlucidError  # noqa: E402
from llucid.llama_jax import from_torch  # noqa: E402
from llucid.presets import PRESETS  # noqa: E402
from llucid.training import backend_jax  # noqa: E402
from llucid.training.loop import train  # noqa: E402
from llucid.training.optimizer import (  # noqa: E402
    learning_rate,
    make_optimizers,
    optimizer_tensors,
    restore_optimizers,
)
from llucid.training.run import Progress  # noqa: E402
from llucid.training.settings import ModelNumbers, Settings  # noqa: E402
from llucid.training.step import loss_sum, train_step  # noqa: E402
from llucid.weights import initialise, leaves, tree_map  # noqa: E402
from tests.oracles import numpy_llama  # noqa: E402
from tests.training.test_run import TEXT, after, command, do, ended, fresh, losses  # noqa: E402
from tests.waiting import LIMIT, wait_for  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NANO = replace(PRESETS["nano"].config, context=32)
STEPS = 200
SETTINGS = Settings(steps=STEPS, learning_rate=8e-3, optimizer="adamw")


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Eight rows that count up by 1, 2 or 3 from a random start; one token in eight is replaced by a random one."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(65, (8, 1), generator=generator)
    stride = torch.randint(1, 4, (8, 1), generator=generator)
    rows = (start + stride * torch.arange(33)) % 65
    noise = torch.randint(65, rows.shape, generator=generator)
    rows = torch.where(torch.rand(rows.shape, generator=generator) < 1 / 8, noise, rows)
    return rows[:, :-1], rows[:, 1:]


def losses_of_both(
    settings: Settings, dtype: torch.dtype, first: int = 0, last: int = STEPS, hand_over: int = 0, config: Config = NANO
) -> Tensor:
    """The loss of each step, [2, steps]: PyTorch's, and JAX's from the same initial weights on the same batches.

    JAX starts before step `hand_over`, from PyTorch's weights and optimizer state at that point.
    """
    weights = tree_map(lambda leaf: leaf.to(dtype).requires_grad_(), initialise(config))
    optimizers = make_optimizers(weights, settings)
    losses: tuple[list[float], list[float]] = ([], [])
    for step in range(first, last):
        if step == hand_over:
            jax_weights = from_torch(weights)
            memory = backend_jax.make_optimizer(settings).init(jax_weights)
            if step:
                memory = backend_jax.restore_memory(optimizer_tensors(optimizers), config)
        inputs, targets = batch(step)
        share = learning_rate(step / STEPS, settings.warmup, settings.final)
        loss = train_step(inputs, targets, weights, config, optimizers, share=share, clip=settings.clip, dtype=dtype)
        if step >= hand_over:
            found, jax_weights, memory = backend_jax.train_step(
                inputs.numpy(), targets.numpy(), jax_weights, memory, config, settings, share
            )
            losses[0].append(loss.item())
            losses[1].append(float(found))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.usefixtures("compiled_well")
def test_every_step_equals_pytorch() -> None:
    """200 steps in float32, at the learning rate of the nano recipe; the largest difference measured is 2.1e-6.

    The last bit of a loss between 2 and 4 is 2.4e-7. Every step rounds, and training carries the differences on, so the
    tolerance of 1e-5 is 40 last bits. (On noisier text, training at this rate is chaotic: in float64 a difference of
    1e-15 grows about 10⁵ times in 200 steps, so in float32 the losses differ in the second digit. At 1e-3 they do not.)
    """
    expected, found = losses_of_both(SETTINGS, torch.float32)
    assert expected[-1] < expected[0] / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("hand_over", "biases"), [(0, False), (15, False), (15, True)])
def test_every_step_equals_pytorch_in_float64(hand_over: int, biases: bool) -> None:
    """From the start, and from a state that PyTorch saved. The gradients are clipped at every step.

    The tolerance of 1e-13 is about 200 last bits; 2e-15 was measured. So a misplaced ε or weight decay is found.
    """
    settings, config = replace(SETTINGS, clip=0.1), replace(NANO, attention_bias=biases, mlp_bias=biases)
    expected, found = losses_of_both(settings, torch.float64, last=30, hand_over=hand_over, config=config)
    assert expected.shape == (30 - hand_over,)
    assert expected[-1] < 4.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("float64")
def test_training_stories260k_equals_numpy(data: Path) -> None:
    """Ten steps from trained weights in float64, beside the oracle's gradients and AdamW as in its paper (Loshchilov &
    Hutter 2019, algorithm 2). The tolerance of 1e-12 is a few thousand last bits of a loss near 1."""
    config, weights, tokenizer = llucid.load(
        data / "stories260K.bin", dtype=torch.float64, device="cpu", tokenizer=data / "tok512.bin"
    )[:3]
    ids = np.array([tokenizer.bos, *tokenizer.encode(TEXT[:200])])
    settings = replace(SETTINGS, learning_rate=1e-3, clip=1e6)
    jax_weights = from_torch(weights)
    memory = backend_jax.make_optimizer(settings).init(jax_weights)
    arrays = tree_map(lambda leaf: leaf.numpy().copy(), weights)
    first, second = (tree_map(np.zeros_like, arrays) for _ in range(2))
    decay = tree_map(float, backend_jax.decaying(arrays))
    expected, found = [], []
    for step in range(1, 11):
        loss, gradients = numpy_llama.loss_and_gradients(ids[:-1], ids[1:], arrays, config)
        first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = tree_map(lambda v, g: 0.95 * v + 0.05 * g**2, second, gradients)
        arrays = tree_map(
            lambda w, m, v, d, step=step: (
                w - 1e-3 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8) + 0.1 * d * w)
            ),
            *(arrays, first, second, decay),
        )
        value, jax_weights, memory = backend_jax.train_step(
            ids[None, :-1], ids[None, 1:], jax_weights, memory, config, settings
        )
        expected.append(loss)
        found.append(float(value))
    assert expected[-1] < expected[0] - 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_pytorch_continues_from_the_state_of_jax(tmp_path: Path) -> None:
    """The optimizer state has PyTorch's names, shapes and values, and is the same after conversion and back."""
    config = replace(NANO, layers=1, tied_embeddings=True)
    weights = tree_map(Tensor.requires_grad_, initialise(config))
    jax_weights, optimizers = from_torch(weights), make_optimizers(weights, SETTINGS)
    memory = backend_jax.make_optimizer(SETTINGS).init(jax_weights)
    for step in range(2):
        inputs, targets = batch(step)
        train_step(inputs, targets, weights, config, optimizers)
        _, jax_weights, memory = backend_jax.train_step(
            inputs.numpy(), targets.numpy(), jax_weights, memory, config, SETTINGS
        )
    expected, found = optimizer_tensors(optimizers), backend_jax.memory_tensors(memory, config)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name + text)

    restore_optimizers(again := make_optimizers(weights, SETTINGS), found)
    assert all(torch.equal(found[name], tensor) for name, tensor in optimizer_tensors(again).items())
    restored = backend_jax.restore_memory(found, config)
    assert jax.tree.structure(restored) == jax.tree.structure(memory)
    assert all((one == two).all() for one, two in zip(jax.tree.leaves(restored), jax.tree.leaves(memory), strict=True))
    backend = backend_jax.JaxBackend(config, SETTINGS, torch.device("cpu"))
    backend.save(tmp_path, backend_jax.State(jax_weights, memory), Progress(2, 1.5))
    state, progress = backend.load(tmp_path)
    assert progress == Progress(2, 1.5)
    tensors = backend_jax.memory_tensors(state.memory, config)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_in_bfloat16_weights_and_sums_stay_float32() -> None:
    """The loss is 4.2, from logits below 1, which bfloat16 rounds by up to 2⁻⁹: about the tolerance here."""
    config = replace(NANO, layers=1)
    weights = tree_map(Tensor.requires_grad_, initialise(config))
    settings = replace(SETTINGS, dtype="bfloat16")
    jax_weights = from_torch(weights)
    memory = backend_jax.make_optimizer(settings).init(jax_weights)
    inputs, targets = batch(0)
    expected = train_step(
        inputs, targets, weights, config, make_optimizers(weights, settings), share=0.1, dtype=torch.bfloat16
    )
    found, jax_weights, memory = backend_jax.train_step(
        inputs.numpy(), targets.numpy(), jax_weights, memory, config, settings, 0.1
    )
    assert float(found) == pytest.approx(expected.item(), rel=1e-3)
    exact = loss_sum(inputs, targets, initialise(config), config).item() / targets.numel()
    assert abs(float(found) - exact) > 3e-6  # six last bits of float32: it was not computed in float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves((found, jax_weights, memory))} == {"float32", "int32"}


@pytest.mark.parametrize(
    ("change", "numbers", "message"),
    [
        ({"optimizer": "muon"}, {}, "optimizer=muon"),
        ({"accumulate": 2}, {}, "accumulate=2"),
        ({"compile": True}, {}, "compile=True"),
        ({}, {"dropout": 0.1}, "model.dropout=0.1"),
    ],
    ids=str,
)
def test_settings_that_only_pytorch_has_are_refused(change: dict, numbers: dict, message: str) -> None:
    with pytest.raises(LlucidError, match=message):
        backend_jax.JaxBackend(replace(NANO, **numbers), replace(SETTINGS, **change), torch.device("cpu"))


def test_a_device_that_jax_does_not_have_is_refused() -> None:
    with pytest.raises(LlucidError, match="device=mps: JAX finds no such device"):
        backend_jax.JaxBackend(NANO, SETTINGS, torch.device("mps"))


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "geese.txt"
    file.write_text(TEXT)
    return file


def test_a_run_equals_that_of_pytorch(corpus: Path, tmp_path: Path) -> None:
    """Every figure of 200 steps of AdamW in float32, and the files in both folders. The largest difference measured is
    1.1e-6; `test_every_step_equals_pytorch` explains the tolerance of 1e-5."""
    options = ("--steps", STEPS, "--dtype", "float32")
    do(*fresh(corpus, tmp_path / "torch", *options, "--optimizer", "adamw"))
    do(*fresh(corpus, tmp_path / "jax", *options, "--backend", "jax"))
    expected, found = losses(tmp_path / "torch"), losses(tmp_path / "jax")
    assert len(expected) == STEPS
    assert expected[-1]["loss"] < expected[0]["loss"] / 3
    assert found != expected  # a different library did compute it
    assert "validation" in found[-1].keys() & expected[-1].keys()
    for row, reference in zip(found, expected, strict=True):
        both = row.keys() & reference.keys()  # a run that has taken 20 seconds is measured earlier than planned
        close = {name: pytest.approx(reference[name], abs=1e-5) for name in both & {"loss", "validation"}}
        assert {name: row[name] for name in both} == {name: reference[name] for name in both} | close
    names = [{path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "torch", tmp_path / "jax")]
    assert names[0] == names[1]
    one, other = (llucid.load(tmp_path / name, device="cpu").weights for name in ("torch", "jax"))
    torch.testing.assert_close(leaves(other), leaves(one), rtol=0, atol=1e-4)


def run(corpus: Path, out: Path, backend: str, stop_after: int | None = None, optimizer: str = "adamw") -> Path:
    """Trains for twelve steps in this process, or for the first `stop_after` of them."""
    settings = Settings(
        corpus=(str(corpus),),
        preset="nano",
        model=ModelNumbers(dim=16, context=16),
        steps=12,
        stop_after=stop_after,
        out=str(out),
        backend=backend,
        dtype="float32",
        batch=4,
        optimizer=optimizer,
        evaluations=1,
    )
    return train(settings, Console(quiet=True))


def resumed(out: Path, backend: str | None = None) -> list[dict[str, object]]:
    """Resumes a run to its end and returns its figures."""
    train(Settings(resume=True, out=str(out), backend=backend), Console(quiet=True))
    return losses(out)


@pytest.mark.slow
def test_resumed_equals_straight(corpus: Path, tmp_path: Path) -> None:
    """Bit for bit if JAX resumes JAX; to float32 rounding (1e-5 as above) if one library resumes the other's run."""
    straight = run(corpus, tmp_path / "straight", "jax")
    halves = run(corpus, tmp_path / "halves", "jax", stop_after=5)
    crossed = shutil.copytree(halves, tmp_path / "crossed")
    assert resumed(halves) == losses(straight)
    for file in ("state/latest.safetensors", "model.safetensors"):
        once, again = load_file(straight / file), load_file(halves / file)
        assert once.keys() == again.keys()
        assert all(torch.equal(once[name], again[name]) for name in once)
    figures = {
        "torch after jax": resumed(crossed, "torch"),
        "jax after torch": resumed(run(corpus, tmp_path / "back", "torch", stop_after=5), "jax"),
    }
    for way, rows in figures.items():
        assert rows != losses(straight), way  # the other library did compute it
        for found, expected in zip(rows, losses(straight), strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5), way


def test_jax_cannot_resume_a_run_with_muon(corpus: Path, tmp_path: Path) -> None:
    out = run(corpus, tmp_path / "muon", "torch", stop_after=1, optimizer="muon")
    with pytest.raises(LlucidError, match="optimizer=muon: backend=jax has only adamw"):
        resumed(out, "jax")


def test_a_loss_that_is_not_finite_is_a_clear_error(corpus: Path, tmp_path: Path) -> None:
    out, huge = tmp_path / "exploded", ("--learning-rate", 1e30)
    printed = do(*fresh(corpus, out, "--steps", 40, "--backend", "jax", *huge), status=2).stderr
    assert re.match("error: the (validation )?loss at step", printed)  # a slow first step is measured at once
    assert all(leaf.isfinite().all() for leaf in leaves(llucid.load(out, device="cpu").weights))


@pytest.mark.slow
def test_ctrl_c_stops_cleanly(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    arguments = fresh(corpus, out, "--steps", 4000, "--backend", "jax")
    running = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
    wait_for(out / "curve.png")  # the first measurement is done
    running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=LIMIT)
    assert running.returncode == 130
    assert f"continue with: llucid train --resume --out {out}" in printed
    assert 0 < len(losses(out)) < 4000


def test_without_jax_the_error_says_how_to_install_it(corpus: Path, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['jax'] = None"
    done = ended(after(hidden, *fresh(corpus, tmp_path / "none", "--steps", 3, "--backend", "jax")), status=2)
    assert "pip install llucid[jax]" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
