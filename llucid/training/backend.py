"""What the loop asks of the library that computes: PyTorch, here, or JAX, in `jax_step`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from llucid.checkpoints import choose_device
from llucid.config import Config
from llucid.training.optimizer import make_optimizers, optimizer_tensors, restore_optimizers
from llucid.training.settings import Settings
from llucid.training.step import loss_sum, train_step
from llucid.weights import Weights, tree_map


class Backend(NamedTuple):
    """Four functions. Weights and memory (what the optimizer remembers) are of the library's own kind between them."""

    start: Callable[[Weights, dict[str, Tensor]], tuple[Any, Any]]
    """Weights and memory from PyTorch's tensors; with `{}`, the memory of an optimizer that has done nothing yet."""
    step: Callable[[Tensor, Tensor, Any, Any, float], tuple[Tensor, Any, Any]]
    """(inputs, targets, weights, memory, share of the peak learning rate) to (loss before it, weights, memory)."""
    weights: Callable[[Any], Weights]
    """The weights as PyTorch's tensors on the run's device, for measuring, writing and keeping."""
    memory: Callable[[Any], dict[str, Tensor]]
    """The memory as PyTorch's tensors, under the names that its AdamW gives them: either library goes on from it."""


def device_of(settings: Settings) -> torch.device:
    """The device of the run: the one given, else the fastest that its library finds."""
    if settings.backend == "jax" and settings.device is None:
        from llucid.training import jax_step

        return jax_step.fastest_device()
    return choose_device(settings.device)


def open_backend(config: Config, settings: Settings, device: torch.device, dropout: torch.Generator) -> Backend:
    """The library of `settings.backend`. Raises LlucidError if it is not installed or cannot train like that."""
    if settings.backend == "jax":
        from llucid.training import jax_step

        return jax_step.open_backend(config, settings, device)
    return with_pytorch(config, settings, device, dropout)


def with_pytorch(config: Config, settings: Settings, device: torch.device, dropout: torch.Generator) -> Backend:
    """PyTorch, whose optimizers change weights and memory in place: what comes out of a step is what went in."""
    dtype = getattr(torch, str(settings.dtype))
    loss_function = torch.compile(loss_sum) if settings.compile else loss_sum

    def start(weights: Weights, remembered: dict[str, Tensor]) -> tuple[Weights, list[Optimizer]]:
        weights = tree_map(lambda leaf: leaf.to(device).requires_grad_(), weights)
        optimizers = make_optimizers(weights, settings)
        restore_optimizers(optimizers, remembered)
        return weights, optimizers

    def step(
        inputs: Tensor, targets: Tensor, weights: Weights, optimizers: list[Optimizer], share: float
    ) -> tuple[Tensor, Weights, list[Optimizer]]:
        loss = train_step(
            inputs.to(device),
            targets.to(device),
            weights,
            config,
            optimizers,
            share=share,
            parts=settings.accumulate,
            clip=settings.clip,
            dtype=dtype,
            dropout=dropout,
            loss_function=loss_function,
        )
        return loss, weights, optimizers

    return Backend(start, step, weights=lambda weights: weights, memory=optimizer_tensors)
