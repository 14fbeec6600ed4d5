"""SwiGLU: after attention, a gated feed-forward network transforms every position by itself."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.rung_07_heads import attention
from llucid.ladder.untrained import untrained
from llucid.llama import rms_norm, rope_frequencies, rotations, swiglu
from llucid.weights import AttentionWeights, FeedForwardWeights

CHANGE = "a feed-forward network"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    attention_norm: Float[Any, " dim"]
    attention: AttentionWeights
    feed_forward_norm: Float[Any, " dim"]
    feed_forward: FeedForwardWeights
    norm: Float[Any, " dim"]
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token]; x + Attention(RMSNorm(x)); x + SwiGLU(RMSNorm(x)); RMSNorm(x) Oᵀ."""
    x = F.embedding(tokens, weights.embedding)
    positions = torch.arange(tokens.shape[1], device=x.device).expand(tokens.shape)
    rotation = rotations(positions, rope_frequencies(config, x))
    x = x + attention(rms_norm(x, weights.attention_norm, config.norm_eps), weights.attention, config, rotation)
    x = x + swiglu(rms_norm(x, weights.feed_forward_norm, config.norm_eps), weights.feed_forward)
    return F.linear(rms_norm(x, weights.norm, config.norm_eps), weights.output)
