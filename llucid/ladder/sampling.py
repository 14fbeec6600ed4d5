"""Random numbers to begin with: the same for the same seed."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal(seed: int) -> Callable[..., Tensor]:
    """`draw(deviation, *shape)`: arrays of normal numbers of mean 0, one after the other."""
    generator = torch.Generator().manual_seed(seed)

    def draw(deviation: float, *shape: int) -> Tensor:
        return torch.empty(shape).normal_(0, deviation, generator=generator)

    return draw
