"""Causal mask: a character attends to itself and to earlier ones only, since later ones are unknown when writing."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained
from llucid.weights import AttentionWeights

CHANGE = "the future is masked"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    position: Float[Any, "ctx dim"]
    attention: AttentionWeights
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


def attention(x: Float[Tensor, "batch seq dim"], weights: AttentionWeights) -> Float[Tensor, "batch seq dim"]:
    """softmax(q kᵀ / √dim + M) v with M = −∞ where the key comes after the query. Vaswani et al. 2017, §3.2.3."""
    q = F.linear(x, weights.query)
    k = F.linear(x, weights.key)
    v = F.linear(x, weights.value)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    scores = scores.masked_fill(later, -math.inf)
    return F.linear(scores.softmax(-1) @ v, weights.output)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token] + P[position]; x + Attention(x); x Oᵀ."""
    x = F.embedding(tokens, weights.embedding) + weights.position[: tokens.shape[1]]
    x = x + attention(x, weights.attention)
    return F.linear(x, weights.output)
