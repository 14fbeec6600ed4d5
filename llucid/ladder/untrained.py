"""Untrained weights of a rung, in the shapes that its `Weights` declares."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import torch

from llucid.config import Config

Tree = TypeVar("Tree")

DEVIATIONS = {"embedding": 1.0, "position": 1.0, "table": 0.02, "down": 0.02, "output": 0.02}
"""Standard deviations of matrices by name, as in `weights.initialise`; of all others 1/√dim."""


def untrained(kind: type[Tree]) -> Callable[[Config, int], Tree]:
    """The function `init(config, seed)` for weights of this kind: matrices are random with mean 0, gains are 1."""

    def init(config: Config, seed: int) -> Tree:
        dim, generator = config.dim, torch.Generator().manual_seed(seed)
        sizes = {"dim": dim, "q": dim, "kv": dim, "ffn": config.ffn_dim}
        sizes |= {"vocab": config.vocab_size, "ctx": config.context}

        def arrays(kind: type[Any]) -> Any:
            made: list[Any] = []
            for name, hint in get_type_hints(kind).items():
                if name in kind._field_defaults:  # biases, which no rung has
                    continue
                if hasattr(hint, "_fields"):
                    made.append(arrays(hint))
                    continue
                array = torch.ones([sizes[axis] for axis in hint.dim_str.split()])
                if array.ndim == 2:
                    array.normal_(0, DEVIATIONS.get(name, 1 / math.sqrt(dim)), generator=generator)
                made.append(array)
            return kind(*made)

        return arrays(kind)

    return init
