"""Untrained weights of a rung, in the shapes that its `Weights` declares."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from llucid.config import Config
from llucid.weights import tree_of

Tree = TypeVar("Tree")

DEVIATIONS = {"embedding": 1.0, "position": 1.0, "table": 0.02, "down": 0.02, "output": 0.02}
"""Standard deviations of matrices by name, as in `weights.initialise`; of all others 1/√dim."""


def untrained(kind: type[Tree]) -> Callable[[Config, int], Tree]:
    """The function `init(config, seed)` for weights of this kind: matrices are random with mean 0, gains are 1."""

    def init(config: Config, seed: int) -> Tree:
        dim, generator = config.dim, torch.Generator().manual_seed(seed)
        sizes = {"dim": dim, "q": dim, "kv": dim, "ffn": config.ffn_dim}
        sizes |= {"vocab": config.vocab_size, "ctx": config.context}

        def draw(path: str, shape: tuple[int, ...]) -> torch.Tensor | None:
            name = path.rpartition(".")[2]
            if name.endswith("_bias"):  # no rung has any
                return None
            if len(shape) == 1:
                return torch.ones(shape)
            return torch.empty(shape).normal_(0, DEVIATIONS.get(name, 1 / math.sqrt(dim)), generator=generator)

        return tree_of(kind, sizes, draw)

    return init
