"""How RoPE's frequencies are scaled for long contexts: stated once, for every spelling and file format.

Pair j turns by θⱼ = base^(−2j/head_dim) radians per position, divided by its slowdown.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from llucid.config import NOWHERE, Config, DynamicScaling, LinearScaling, RopeScaling, YarnScaling


def slowdowns(config: Config, length: int = 0) -> Float[NDArray[np.float64], " half"]:
    """How many times slower each pair turns than without scaling. Only DynamicScaling asks for the `length`."""
    pair = np.arange(0, config.head_dim, 2) / config.head_dim
    with np.errstate(all="ignore"):  # a base beyond float64's range makes infinities
        match config.rope_scaling:
            case None:
                return np.ones(len(pair))
            case LinearScaling(factor=factor):
                return np.full(len(pair), factor)
            case DynamicScaling(factor=factor):
                # transformers' base · s^(head_dim / (head_dim − 2)), s = factor · length / context − (factor − 1)
                stretch = factor * max(length / config.context, 1) - (factor - 1)
                return stretch ** (pair * config.head_dim / max(1, config.head_dim - 2))
            case YarnScaling() as yarn:
                first, last = (pair_with(turns, config, yarn) for turns in (yarn.beta_fast, yarn.beta_slow))
                first, last = max(math.floor(first), 0), min(math.ceil(last), config.head_dim - 1)
                width = last - first or 0.001
                kept = 1 - np.clip((np.arange(len(pair)) - first) / width, 0, 1)
                return 1 / ((1 - kept) / yarn.factor + kept)
            case RopeScaling() as llama3:
                turns = llama3.original_context * np.float64(config.rope_theta) ** -pair / (2 * np.pi)
                kept = (turns - llama3.low_freq_factor) / (llama3.high_freq_factor - llama3.low_freq_factor)
                kept = np.clip(kept, 0, 1)
                return 1 / ((1 - kept) / llama3.factor + kept)


def dynamic_length(config: Config, positions: Any) -> int:
    """With DynamicScaling, one more than the largest position that is not NOWHERE; else 0, and no device is asked."""
    if not isinstance(config.rope_scaling, DynamicScaling) or not (positions != NOWHERE).any():
        return 0
    return 1 + int(positions[positions != NOWHERE].max())


def pair_with(turns: float, config: Config, yarn: YarnScaling) -> float:
    """The pair (not rounded) that makes this many turns in the original context. Peng et al. 2023, §3.2."""
    base = math.log(config.rope_theta) or math.inf  # with a base of 1, all pairs turn alike
    return config.head_dim * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * base)


def attention_factor(config: Config) -> float:
    """What turned queries and keys are multiplied by: 1, but for YaRN. Scores grow by its square."""
    return config.rope_scaling.attention_factor if isinstance(config.rope_scaling, YarnScaling) else 1.0


@np.errstate(all="ignore")  # a base beyond float32's range is infinite or 0, as it is in PyTorch
def frequencies(config: Config) -> Float[NDArray[np.float32], " half"]:
    """Radians per position of each pair, in NumPy. Su et al. 2021 (RoFormer), §3.2.2."""
    j = np.arange(config.head_dim // 2, dtype=np.float32)
    theta = (1 / np.float32(config.rope_theta) ** (2 * j / config.head_dim)).astype(np.float32)
    return theta / slowdowns(config).astype(np.float32)
