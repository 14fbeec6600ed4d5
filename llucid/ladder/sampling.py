"""Random initial weights that are the same for the same seed."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal(seed: int) -> Callable[..., Tensor]:
    """Returns `draw(deviation, *shape)`, which gives normally distributed arrays of mean 0 from one generator."""
    generator = torch.Generator().manual_seed(seed)

    def draw(deviation: float, *shape: int) -> Tensor:
        return torch.empty(shape).normal_(0, deviation, generator=generator)

    return draw
