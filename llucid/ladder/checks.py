"""Checks of a rung before it is trained: shapes, initial loss, gradients, causality."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llucid.config import Config
from llucid.ladder import Rung
from llucid.weights import leaves, named_leaves


class Check(NamedTuple):
    """One check: whether it passed, and what was found."""

    passed: bool
    finding: str


def check(rung: Rung, config: Config, seed: int) -> list[Check]:
    """The checks of shapes, initial loss, gradients and causality, in this order.

    If the shapes are wrong, only that check: there is no loss to compute.
    """
    weights = rung.init(config, seed)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    tokens = every_token(config)
    shapes = check_shapes(rung, weights, config, tokens)
    if not shapes.passed:
        return [shapes]
    return [
        shapes,
        check_initial_loss(rung, weights, config, tokens),
        check_gradients(rung, weights, config, tokens),
        check_causality(rung, weights, config, tokens),
    ]


def every_token(config: Config) -> Tensor:
    """At least two rows of context + 1 tokens, in which every token of the vocabulary occurs."""
    rows = max(2, -(-config.vocab_size // config.context))
    return (torch.arange(rows * (config.context + 1)) % config.vocab_size).view(rows, -1)


def check_shapes(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """The logits have the shape batch seq vocab."""
    batch, seq = tokens[:, :-1].shape
    found = tuple(rung.logits(tokens[:, :-1], weights, config).shape)
    return Check(found == (batch, seq, config.vocab_size), f"shapes: tokens {(batch, seq)} → logits {found}")


def check_initial_loss(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """An untrained rung predicts nearly uniformly, so its loss is about ln vocab."""
    uniform = math.log(config.vocab_size)
    loss = rung.loss(tokens[:, :-1], tokens[:, 1:], weights, config).item() / tokens[:, 1:].numel()
    return Check(abs(loss - uniform) < 0.25, f"untrained loss {loss:.3f} ≈ ln {config.vocab_size} = {uniform:.3f}")


def check_gradients(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """The loss depends on every array: each has a gradient that is finite and not zero everywhere."""
    rung.loss(tokens[:, :-1], tokens[:, 1:], weights, config).backward()
    named = list(named_leaves(weights))
    wrong = [path for path, leaf in named if leaf.grad is None or not leaf.grad.any() or not leaf.grad.isfinite().all()]
    numbers = sum(leaf.numel() for _, leaf in named)
    if wrong:
        return Check(False, f"no usable gradient for {', '.join(wrong)}")
    return Check(True, f"gradient reaches every array: {len(named)} of {len(named)}, {numbers:,} parameters")


@torch.no_grad()
def check_causality(rung: Rung, weights: Any, config: Config, tokens: Tensor) -> Check:
    """The logits up to a position do not change when later tokens change."""
    position = config.context // 2
    other = tokens[:, :-1].clone()
    other[:, position + 1 :] = (other[:, position + 1 :] + 1) % config.vocab_size
    before, after = (rung.logits(each, weights, config)[:, : position + 1] for each in (tokens[:, :-1], other))
    if (before - after).abs().max().item() > 1e-5:
        return Check(False, f"sees the future: changing characters after position {position} changes logits before it")
    return Check(True, f"causal: changing characters after position {position} changes no logits before it")
