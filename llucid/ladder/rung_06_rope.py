"""RoPE: queries and keys are rotated by their positions, so that a score depends on the distance of two characters."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained
from llucid.llama import rms_norm, rope_frequencies, rotate, rotations
from llucid.weights import AttentionWeights

CHANGE = "rotation, no table"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    attention_norm: Float[Any, " dim"]
    attention: AttentionWeights
    norm: Float[Any, " dim"]
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


def attention(
    x: Float[Tensor, "batch seq dim"], weights: AttentionWeights, rotation: Float[Tensor, "batch 1 seq half 2"]
) -> Float[Tensor, "batch seq dim"]:
    """softmax(q kᵀ / √dim + M) v, with q and k turned by their positions. Su et al. 2021, eq. 16."""
    q = F.linear(x, weights.query)
    k = F.linear(x, weights.key)
    v = F.linear(x, weights.value)
    q, k = (rotate(x[:, None], rotation)[:, 0] for x in (q, k))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    scores = scores.masked_fill(later, -math.inf)
    return F.linear(scores.softmax(-1) @ v, weights.output)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token]; x + Attention(RMSNorm(x)); RMSNorm(x) Oᵀ."""
    x = F.embedding(tokens, weights.embedding)
    positions = torch.arange(tokens.shape[1], device=x.device).expand(tokens.shape)
    rotation = rotations(positions, rope_frequencies(replace(config, head_dim=config.dim), x))
    x = x + attention(rms_norm(x, weights.attention_norm, config.norm_eps), weights.attention, rotation)
    return F.linear(rms_norm(x, weights.norm, config.norm_eps), weights.output)
