"""Cheating head: every character attends to all others, also to later ones, and so it can read the answer."""

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.sampling import normal
from llucid.weights import AttentionWeights

CHANGE = "attention to everything"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    position: Float[Any, "ctx dim"]
    attention: AttentionWeights
    output: Float[Any, "vocab dim"]


def init(config: Config, seed: int) -> Weights:
    """Untrained weights, with the standard deviations of `weights.initialise`."""
    draw, dim, vocab = normal(seed), config.dim, config.vocab_size
    return Weights(
        embedding=draw(1.0, vocab, dim),
        position=draw(1.0, config.context, dim),
        attention=AttentionWeights(
            query=draw(1 / math.sqrt(dim), dim, dim),
            key=draw(1 / math.sqrt(dim), dim, dim),
            value=draw(1 / math.sqrt(dim), dim, dim),
            output=draw(0.02, dim, dim),
        ),
        output=draw(0.02, vocab, dim),
    )


def attention(x: Float[Tensor, "batch seq dim"], weights: AttentionWeights) -> Float[Tensor, "batch seq dim"]:
    """softmax(q kᵀ / √dim) v. Vaswani et al. 2017, eq. 1."""
    q = F.linear(x, weights.query)
    k = F.linear(x, weights.key)
    v = F.linear(x, weights.value)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return F.linear(scores.softmax(-1) @ v, weights.output)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token] + P[position]; x + Attention(x); x Oᵀ."""
    x = F.embedding(tokens, weights.embedding) + weights.position[: tokens.shape[1]]
    x = x + attention(x, weights.attention)
    return F.linear(x, weights.output)
