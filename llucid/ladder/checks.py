"""What must hold of every rung before it is trained, found out by running it."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llucid.config import Config
from llucid.ladder import Rung
from llucid.weights import leaves, named_leaves


class Check(NamedTuple):
    """What was looked at, and whether it held."""

    holds: bool
    finding: str


def check(rung: Rung, config: Config, seed: int) -> list[Check]:
    """The shapes, the loss of a rung that has learned nothing, the gradients, and last whether it sees the future.

    Where the shapes are wrong, they alone, since of such logits there is no loss.
    """
    weights = rung.init(config, seed)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    tokens = every_token(config)
    first = shapes(rung, weights, config, tokens)
    if not first.holds:
        return [first]
    return [
        first,
        uniform(rung, weights, config, tokens),
        gradients(rung, weights, config, tokens),
        blind_to_the_future(rung, weights, config, tokens),
    ]


def every_token(config: Config) -> Tensor:
    """Rows of whole contexts and one token more, in which each token of the vocabulary stands at least once."""
    rows = max(2, -(-config.vocab_size // config.context))
    return (torch.arange(rows * (config.context + 1)) % config.vocab_size).view(rows, -1)


def shapes(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """Logits are batch seq vocab."""
    batch, seq = tokens[:, :-1].shape
    got = tuple(rung.logits(tokens[:, :-1], weights, config).shape)
    return Check(got == (batch, seq, config.vocab_size), f"shapes: tokens {(batch, seq)} → logits {got}")


def uniform(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """An untrained rung guesses about evenly: its loss is ln vocab."""
    even = math.log(config.vocab_size)
    loss = rung.loss(tokens[:, :-1], tokens[:, 1:], weights, config).item() / tokens[:, 1:].numel()
    return Check(abs(loss - even) < 0.25, f"untrained loss {loss:.3f} ≈ ln {config.vocab_size} = {even:.3f}")


def gradients(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """The loss depends on every array: each has a gradient, of finite numbers that are not all 0."""
    rung.loss(tokens[:, :-1], tokens[:, 1:], weights, config).backward()
    named = list(named_leaves(weights))
    dead = [path for path, leaf in named if leaf.grad is None or not leaf.grad.any() or not leaf.grad.isfinite().all()]
    numbers = sum(leaf.numel() for _, leaf in named)
    if dead:
        return Check(False, f"no gradient reaches {', '.join(dead)}")
    return Check(True, f"gradient reaches every array: {len(named)} of {len(named)}, {numbers:,} numbers")


@torch.no_grad()
def blind_to_the_future(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """What is said up to a place does not change when the tokens after it do."""
    place = config.context // 2
    other = tokens[:, :-1].clone()
    other[:, place + 1 :] = (other[:, place + 1 :] + 1) % config.vocab_size
    before, after = (rung.logits(each, weights, config)[:, : place + 1] for each in (tokens[:, :-1], other))
    moved = (before - after).abs().max().item()
    if moved > 1e-5:
        return Check(False, f"sees the future: other characters after place {place} move the scores before it")
    return Check(True, f"no peeking: other characters after place {place} leave all scores before it alone")
