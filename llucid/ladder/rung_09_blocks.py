"""Blocks: three blocks of attention and feed-forward follow one another, and each builds on the one before."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.rung_07_heads import attention
from llucid.llama import rms_norm, rope_frequencies, rotations, swiglu, unembed
from llucid.weights import Weights, initialise

CHANGE = "three blocks, not one"


def init(config: Config, seed: int) -> Weights:
    """The untrained weights of a Llama in which every query head has its own keys and values."""
    return initialise(replace(config, kv_heads=config.heads), seed)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """x = E[token]; for each block, x + Attention(RMSNorm(x)) and x + SwiGLU(RMSNorm(x)); RMSNorm(x) Oᵀ."""
    x = F.embedding(tokens, weights.embedding)
    positions = torch.arange(tokens.shape[1], device=x.device).expand(tokens.shape)
    rotation = rotations(positions, rope_frequencies(config, x))
    for block in weights.blocks:
        x = x + attention(rms_norm(x, block.attention_norm, config.norm_eps), block.attention, config, rotation)
        x = x + swiglu(rms_norm(x, block.feed_forward_norm, config.norm_eps), block.feed_forward)
    return unembed(rms_norm(x, weights.norm, config.norm_eps), weights)
