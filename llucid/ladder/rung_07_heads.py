"""Heads: queries, keys and values are split into four heads, and each can attend to something different."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained
from llucid.llama import rms_norm, rope_frequencies, rotate, rotations
from llucid.weights import AttentionWeights

CHANGE = "four heads, not one"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    attention_norm: Float[Any, " dim"]
    attention: AttentionWeights
    norm: Float[Any, " dim"]
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


def attention(
    x: Float[Tensor, "batch seq dim"],
    weights: AttentionWeights,
    config: Config,
    rotation: Float[Tensor, "batch 1 seq half 2"],
) -> Float[Tensor, "batch seq dim"]:
    """softmax(q kᵀ / √head_dim + M) v in each head, on its slice of q, k and v. Vaswani et al. 2017, §3.2.2."""
    head = (config.heads, config.dim // config.heads)
    q = F.linear(x, weights.query).unflatten(-1, head).transpose(1, 2)
    k = F.linear(x, weights.key).unflatten(-1, head).transpose(1, 2)
    v = F.linear(x, weights.value).unflatten(-1, head).transpose(1, 2)
    q, k = rotate(q, rotation), rotate(k, rotation)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    scores = scores.masked_fill(later, -math.inf)
    return F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), weights.output)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token]; x + Attention(RMSNorm(x)); RMSNorm(x) Oᵀ."""
    x = F.embedding(tokens, weights.embedding)
    positions = torch.arange(tokens.shape[1], device=x.device).expand(tokens.shape)
    rotation = rotations(positions, rope_frequencies(config, x))
    x = x + attention(rms_norm(x, weights.attention_norm, config.norm_eps), weights.attention, config, rotation)
    return F.linear(rms_norm(x, weights.norm, config.norm_eps), weights.output)
