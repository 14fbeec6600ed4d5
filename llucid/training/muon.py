"""Muon: momentum, orthogonalised. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a·s + b·s³ + c·s⁵. Five rounds bring singular values s from 0.002 to 1 to between 0.68 and 1.20."""


def orthogonalise(matrices: Float[Tensor, "count rows cols"]) -> Float[Tensor, "count rows cols"]:
    """Approximately the nearest orthogonal matrix to each, by Newton–Schulz iterations in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """torch.optim.Muon for many small matrices: those of one shape are orthogonalised together, not one by one."""

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """M ← βM + (1−β)G; W ← (1−ηλ)W − η √max(1, rows/cols) orthogonalise((1−β)G + βM)."""
        for group in self.param_groups:
            beta, rate = group["momentum"], group["lr"]
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[weight.shape].append(weight)
            for (rows, cols), weights in shapes.items():
                ahead: list[Tensor] = []
                for weight in weights:
                    gradient = cast(Tensor, weight.grad)
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    ahead.append(gradient.lerp(momentum.lerp_(gradient, 1 - beta), beta))
                scale = rate * max(1, rows / cols) ** 0.5
                for weight, step in zip(weights, orthogonalise(torch.stack(ahead)), strict=True):
                    weight.mul_(1 - rate * group["weight_decay"]).sub_(step, alpha=scale)
