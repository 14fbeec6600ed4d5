"""x Wᵀ, in float32 on a CPU by the quicker of PyTorch's two libraries.

PyTorch gives such products to MKL, which leaves half of the processor unused where it was not made by Intel. oneDNN,
which PyTorch has as well and uses for bfloat16, takes the same sums in half of the time (benchmarks/products.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

QUICK = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this PyTorch, on this processor, has something to gain."""
LARGE = 2**20
"""Multiplications that outweigh the 15 microseconds by which a call of oneDNN takes longer."""

SMALL = 2**14
"""Elements of W up to which MKL takes the gradient of W sooner: long sums, and few of them."""


def linear(x: Float[Tensor, "*batch columns"], w: Float[Tensor, "rows columns"]) -> Float[Tensor, "*batch rows"]:
    """x Wᵀ: `torch.nn.functional.linear`, perhaps sooner."""
    quick = QUICK and x.numel() * len(w) >= LARGE and not torch.compiler.is_compiling()
    if not quick or not all(type(a) in (Tensor, torch.nn.Parameter) and suits(a) for a in (x, w)):
        return F.linear(x, w)
    return Linear.apply(x, w) if torch.is_grad_enabled() else product(x, w)  # type: ignore[return-value]


def suits(x: Tensor) -> bool:
    """Whether it is of the kind whose products oneDNN takes sooner."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def product(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


class Linear(Function):
    """x Wᵀ by oneDNN, and its gradients, which are such products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return product(x, w)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """y = x Wᵀ: ∂x = ∂y W and ∂W = ∂yᵀ x, summed over all vectors."""
        x, w = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad
        dx = product(gradient, w.T) if need_x else None
        if not need_w:
            return dx, None
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        if w.numel() <= SMALL:
            return dx, gradient.T @ x
        wide = w.shape[0] > w.shape[1]  # oneDNN copies its first argument if it is transposed: the smaller of the two
        return dx, product(x.T, gradient.T).T if wide else product(gradient.T, x.T)
