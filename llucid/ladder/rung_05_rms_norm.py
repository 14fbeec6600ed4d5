"""RMSNorm: the inputs of attention and of the output matrix are scaled to one length, so their size does not matter."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained
from llucid.llama import rms_norm
from llucid.weights import AttentionWeights

CHANGE = "normalised inputs"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    position: Float[Any, "ctx dim"]
    attention_norm: Float[Any, " dim"]
    attention: AttentionWeights
    norm: Float[Any, " dim"]
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
    """x = E[token] + P[position]; x + Attention(RMSNorm(x)); RMSNorm(x) Oᵀ."""
    x = F.embedding(tokens, weights.embedding) + weights.position[: tokens.shape[1]]
    x = x + attention(rms_norm(x, weights.attention_norm, config.norm_eps), weights.attention)
    return F.linear(rms_norm(x, weights.norm, config.norm_eps), weights.output)
