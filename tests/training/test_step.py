"""One training step: the loss, the optimizers, the learning rate, evaluation."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from llucid.config import Config
from llucid.corpora.tokens import validation_batches
from llucid.errors import LlucidError
from llucid.llama import llama
from llucid.training.backend_torch import TorchBackend
from llucid.training.muon import Muon, orthogonalise
from llucid.training.optimizer import learning_rate, make_optimizers, optimizer_tensors, restore_optimizers
from llucid.training.run import Progress
from llucid.training.settings import Settings
from llucid.training.step import loss_sum, mean_loss, train_step
from llucid.weights import Weights, initialise, leaves, named_leaves, tree_map
from tests.configs import CONFIGS
from tests.corpora.test_corpora import counting

CONFIG = CONFIGS["one for two"]
SETTINGS = Settings(steps=10, learning_rate=0.01, muon_learning_rate=0.02, optimizer="adamw")


def fresh(config: Config = CONFIG, dtype: torch.dtype = torch.float64) -> Weights:
    return tree_map(lambda leaf: (4 * leaf).to(dtype).requires_grad_(), initialise(config))


def batch(rows: int = 8, seq: int = 12) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(CONFIG.vocab_size, (rows, seq + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:].clone()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_equals_the_whole_batch(optimizer: str) -> None:
    """Even when the parts count unequal numbers of tokens: a mean of means would differ in the first digits."""
    inputs, targets = batch()
    targets[:2, 3:] = -100
    mean = F.cross_entropy(llama(inputs, fresh(), CONFIG).flatten(0, 1), targets.flatten())
    results = []
    for parts in (1, 4):
        weights = fresh()
        optimizers = make_optimizers(weights, replace(SETTINGS, optimizer=optimizer))
        loss = train_step(inputs, targets, weights, CONFIG, optimizers, parts=parts, dtype=torch.float64)
        results.append([loss, *leaves(weights)])
    # Muon orthogonalises in bfloat16, where the last bit of a sum may tip a rounding; AdamW stays in float64.
    close = {"rtol": 1e-8, "atol": 1e-9} if optimizer == "adamw" else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(results[0][0], mean, rtol=1e-8, atol=0)
    for whole, accumulated in zip(*results, strict=True):
        torch.testing.assert_close(accumulated, whole, **close)


def test_accumulating_unevenly_many_rows_keeps_every_row() -> None:
    inputs, targets = batch(rows=7)
    losses = [
        train_step(inputs, targets, weights := fresh(), CONFIG, make_optimizers(weights, SETTINGS), parts=parts)
        for parts in (1, 2, 3, 7)
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-5)


def test_untrained_loss_is_log_of_the_vocabulary() -> None:
    """Untrained logits are nearly 0, so every token has probability 1/vocab. Deviation of the mean is about 0.01."""
    inputs, targets = batch()
    loss = loss_sum(inputs, targets, initialise(CONFIG), CONFIG) / targets.numel()
    assert loss.item() == pytest.approx(math.log(CONFIG.vocab_size), abs=0.05)


def groups(optimizers: list[Optimizer], weights: Weights) -> dict[str, tuple[str, Any, float, float]]:
    """Optimizer, momentum or betas, weight decay and peak rate of every parameter, by its path."""
    paths = {id(leaf): path for path, leaf in named_leaves(weights)}
    return {
        paths[id(leaf)]: (
            type(optimizer).__name__,
            group["momentum"] if isinstance(optimizer, Muon) else group["betas"],
            group["weight_decay"],
            group["initial_lr"],
        )
        for optimizer in optimizers
        for group in optimizer.param_groups
        for leaf in group["params"]
    }


@pytest.mark.parametrize("name", ["one for two", "one for all, tied"])
def test_only_hidden_matrices_decay(name: str) -> None:
    weights = fresh(CONFIGS[name])
    paths = {path for path, _ in named_leaves(weights)}
    adamw = groups(make_optimizers(weights, SETTINGS), weights)
    muon = groups(make_optimizers(weights, replace(SETTINGS, optimizer="muon")), weights)
    assert adamw.keys() == muon.keys() == paths
    for path in paths:
        matrix = ".attention." in path or ".feed_forward." in path
        decay = SETTINGS.weight_decay if matrix else 0
        assert adamw[path] == ("AdamW", (0.9, 0.95), decay, 0.01)
        assert muon[path] == (("Muon", 0.95, decay, 0.02) if matrix else ("AdamW", (0.9, 0.95), decay, 0.01))


def test_learning_rate_rises_falls_and_does_not_begin_at_zero() -> None:
    rates = [learning_rate(step / 1000, warmup=0.1, final=0.05) for step in range(1001)]
    assert 0 < rates[0] < 0.02
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == rates[100] == 1
    assert rates[550] == pytest.approx((1 + 0.05) / 2)
    assert rates[-1] == pytest.approx(0.05)
    assert learning_rate(0.0, warmup=0.0, final=0.0) == 1


def test_gradients_are_clipped_to_their_common_norm() -> None:
    """Plain gradient descent at rate 1 moves by the clipped gradient: exactly as far as `clip` says."""
    weights, before = fresh(), leaves(fresh())
    descent = torch.optim.SGD(leaves(weights), lr=1.0)
    descent.param_groups[0]["initial_lr"] = 1.0
    train_step(*batch(), weights, CONFIG, [descent], clip=1e-3, dtype=torch.float64)
    moved = math.sqrt(sum((new - old).square().sum().item() for new, old in zip(leaves(weights), before, strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-2)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_share_scales_a_step_and_gradients_are_reset() -> None:
    """A step with share 0 does not change the next one; a step with share 0.5 moves half as far as a whole one."""
    moved = []
    for shares in ((1.0,), (0.0, 0.5)):
        weights = fresh()
        descent = torch.optim.SGD(leaves(weights), lr=1.0)
        descent.param_groups[0]["initial_lr"] = 0.01
        for share in shares:
            train_step(*batch(), weights, CONFIG, [descent], share=share, clip=math.inf, dtype=torch.float64)
        moved.append([new.detach() - old for new, old in zip(leaves(weights), leaves(fresh()), strict=True)])
    for whole, half in zip(*moved, strict=True):
        torch.testing.assert_close(2 * half, whole)


def test_dropout_of_a_training_step_is_the_models() -> None:
    config = replace(CONFIG, dropout=0.5)
    inputs, targets = batch()

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    logits = llama(inputs, fresh(), config, dropout=seeded()).flatten(0, 1)
    loss = train_step(inputs, targets, fresh(), config, [], dtype=torch.float64, dropout=seeded())
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets.flatten()))
    assert loss != train_step(inputs, targets, fresh(), config, [], dtype=torch.float64)


def test_optimizers_are_restored_exactly() -> None:
    settings = replace(SETTINGS, optimizer="muon")
    weights = fresh(dtype=torch.float32)
    optimizers = make_optimizers(weights, settings)
    train_step(*batch(), weights, CONFIG, optimizers)
    again = make_optimizers(weights, settings)
    assert not optimizer_tensors(again)
    restore_optimizers(again, {name: value.clone() for name, value in optimizer_tensors(optimizers).items()})
    first, second = optimizer_tensors(optimizers), optimizer_tensors(again)
    assert first.keys() == second.keys()
    assert len(first) >= 14 + 3 * 7
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_that_lacks_a_tensor_is_refused(optimizer: str, tmp_path: Path) -> None:
    backend = TorchBackend(CONFIG, replace(SETTINGS, optimizer=optimizer, dtype="float32"), torch.device("cpu"))
    _, state = backend.step(batch(), backend.start(fresh(dtype=torch.float32)), 1.0)
    backend.save(tmp_path, state, Progress(1))
    backend.load(tmp_path)
    file = tmp_path / "latest.safetensors"
    saved = load_file(file)
    for name in [name for name in saved if name != "dropout"]:
        for damaged in ({}, {name: torch.ones(3)}):
            save_file({key: saved[key] for key in saved if key != name} | damaged, file, {"progress": '{"step": 1}'})
            with pytest.raises(LlucidError, match="not a state that the run of"):
                backend.load(tmp_path)


@pytest.mark.parametrize("overlap", [False, True])
def test_evaluation_is_the_mean_over_all_tokens(tmp_path: Path, overlap: bool) -> None:
    """The tokens of the last, shorter window have the same weight as all others."""
    config = replace(CONFIG, context=16)
    weights, tokens = fresh(config, torch.float32), counting(45, tmp_path)
    text = torch.arange(45)[None]
    begins = range(0, 44, 16) if not overlap else [0, *range(8, 40, 8)]
    losses = []
    for begin in begins:
        window = slice(begin, min(begin + 16, 44))
        skip = 8 if overlap and begin else 0
        targets = text[:, 1:].clone()
        targets[:, : begin + skip] = -100
        losses.append(loss_sum(text[:, window], targets[:, window], weights, config).item())
    assert mean_loss(validation_batches(tokens, config.context, overlap), weights, config) == pytest.approx(
        sum(losses) / 44, rel=1e-5
    )


def test_muon_equals_pytorchs_own() -> None:
    """The same updates, computed for many matrices at once."""
    shapes = [(48, 48)] * 4 + [(80, 48)] * 2 + [(48, 80)]
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in ours]
    first = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.3)
    second = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.3)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        first.step()
        second.step()
    for one, other in zip(ours, theirs, strict=True):
        # Products in bfloat16 may round differently by the shape of the batch: to the next number, which for numbers
        # below 1, as those of orthogonal matrices are, is at most 2⁻⁸ away.
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=3 * 2**-8 * 0.02)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    """Jordan's coefficients give 0.68 to 1.13; bfloat16 and only five iterations widen that a little."""
    matrices = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    for made in (orthogonalise(matrices), orthogonalise(matrices.mT)):
        values = torch.linalg.svdvals(made.float())
        assert values.min() > 0.6
        assert values.max() < 1.25


def test_muon_skips_missing_gradients_and_accepts_zero_gradients() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()
    still, moved = torch.ones(4, 6), torch.ones(4, 6)
    moved.grad = torch.zeros_like(moved)
    Muon([still, moved], lr=0.5, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(4, 6))
    assert torch.equal(moved, torch.full((4, 6), 0.75))  # only decay
