"""Cheating head: every character attends to all others, also to later ones, and so it can read the answer."""

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained
from llucid.weights import AttentionWeights

CHANGE = "attention to everything"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    position: Float[Any, "ctx dim"]
    attention: AttentionWeights
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


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
