"""One step of training, and the measure of how well it goes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from llucid.config import Config
from llucid.llama import llama, wide
from llucid.weights import Weights, leaves, to


def cross_entropy_sum(logits: Float[Tensor, "rows seq vocab"], targets: Int[Tensor, "rows seq"]) -> Float[Tensor, ""]:
    """−Σ log softmax(logits)[target] in nats, summed over all tokens; targets of −100 do not count.

    The softmax is taken in float32.
    """
    return F.cross_entropy(wide(logits.flatten(0, 1)), targets.flatten(), reduction="sum")


def loss_sum(
    inputs: Int[Tensor, "rows seq"],
    targets: Int[Tensor, "rows seq"],
    weights: Weights,
    config: Config,
    dtype: torch.dtype = torch.float32,
    dropout: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """−Σ log p(target) in nats, summed over all tokens; targets of −100 do not count.

    The weights are rounded to `dtype` here, inside of what is differentiated, so that gradients arrive in float32 and
    add up there.
    """
    return cross_entropy_sum(llama(inputs, to(weights, dtype), config, dropout=dropout), targets)


def train_step(
    inputs: Int[Tensor, "rows seq"],
    targets: Int[Tensor, "rows seq"],
    weights: object,
    config: Config,
    optimizers: list[Optimizer],
    *,
    share: float = 1.0,
    parts: int = 1,
    clip: float = 1.0,
    dtype: torch.dtype = torch.float32,
    dropout: torch.Generator | None = None,
    loss_function: Callable[..., Tensor] = loss_sum,
) -> Float[Tensor, ""]:
    """One step of the optimizers on one batch, at `share` of their peak learning rates; returns the loss before it.

    The loss is a sum over tokens divided by the number of tokens of the whole batch, so the `parts` that it is run in
    (gradient accumulation) change the memory it takes and not the result, except dropout's random numbers. `weights` is
    whatever tree of arrays `loss_function` takes.
    """
    counted = (targets != -100).sum()
    losses: list[Tensor] = []
    for part_inputs, part_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        loss = loss_function(part_inputs, part_targets, weights, config, dtype, dropout) / counted
        loss.backward()
        losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(leaves(weights), clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses).sum()


@torch.no_grad()
def mean_loss(
    batches: Iterable[tuple[Tensor, Tensor]],
    weights: Any,
    config: Config,
    dtype: torch.dtype = torch.float32,
    loss_function: Callable[..., Tensor] = loss_sum,
) -> float:
    """The mean of −log p(target) in nats over batches of inputs and targets; targets of −100 do not count."""
    total, counted = 0.0, 0
    weights, device = to(weights, dtype), leaves(weights)[0].device
    for inputs, targets in batches:
        total += loss_function(inputs.to(device), targets.to(device), weights, config, dtype).item()
        counted += int((targets != -100).sum())
    return total / counted
