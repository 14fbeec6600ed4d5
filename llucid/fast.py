"""x Wᵀ and E[tokens] for each kind of matrix, and attention, by the fastest way that PyTorch has.

PyTorch gives float32 products on a CPU to MKL, which uses only half the vector width of AMD processors. oneDNN, which
PyTorch has too and uses for bfloat16, takes half the time there; on Intel's, MKL is faster (benchmarks/products.py).
"""

import inspect
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from operator import eq
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function

from llucid.arrays import Mapped, Quantized
from llucid.files import digests

Matrix = Float[Tensor, "rows columns"] | Quantized

CPUINFO = Path("/proc/cpuinfo")


def is_amd() -> bool:
    """Whether the processor is one of AMD's, by the vendor's name that MKL itself looks at."""
    found = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else platform.processor()
    return "AuthenticAMD" in found


HAS_ONEDNN = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether PyTorch has both libraries and the processor has AVX-512."""
ONEDNN_IS_FASTER = HAS_ONEDNN and is_amd()
"""Whether oneDNN is known to be faster for float32."""
LARGE = 2**20
"""Multiplications from which on oneDNN is faster: a call of it takes 15 microseconds longer."""
SMALL = 2**14
"""Elements of W up to which MKL computes the gradient of W faster: it has few sums, but long ones."""


def dense(leaf: Tensor | Quantized | Mapped) -> Tensor:
    """A leaf of the weights' tree as an ordinary tensor."""
    match leaf:
        case Quantized():
            return leaf.dense()
        case Mapped():
            return leaf.tensor()
        case _:
            return leaf


def embed(tokens: Int[Tensor, "*shape"], w: Matrix) -> Float[Tensor, "*shape columns"]:
    """The rows of W that the tokens name."""
    match w:
        case Quantized():
            return w.rows_of(tokens)
        case _:
            return F.embedding(tokens, w)


def linear(
    x: Float[Tensor, "*batch columns"], w: Matrix, bias: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "*batch rows"]:
    """x Wᵀ + b, or x Wᵀ where there is no bias."""
    match w:
        case Quantized():
            w = w.dense()
        case _:
            pass
    if not use_onednn(x, w):
        return F.linear(x, w, bias)
    y: Any = Linear.apply(x, w) if torch.is_grad_enabled() else product(x, w)
    return y if bias is None else y + bias


def linear_each(
    x: Float[Tensor, "*batch columns"], *pairs: tuple[Tensor | Quantized, Tensor | None]
) -> tuple[Tensor, ...]:
    """`linear` for each matrix and its bias: in training as one product, which is faster than several small ones."""
    matrices = [w for w, _ in pairs]
    if len(pairs) > 1 and torch.is_grad_enabled() and use_onednn(x, *matrices):
        products: Any = Linear.apply(x, *matrices)
        return tuple(y if bias is None else y + bias for y, (_, bias) in zip(products, pairs, strict=True))
    return tuple(linear(x, w, bias) for w, bias in pairs)


def use_onednn(x: Tensor, *matrices: Tensor | Quantized) -> bool:
    """Whether oneDNN is faster: the product is large enough, and of plain float32 tensors on the CPU."""
    if not ONEDNN_IS_FASTER or x.numel() * sum(w.shape[0] for w in matrices) < LARGE or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]  # torch.func's grad and vmap
        return False
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]  # whose derivatives oneDNN would drop
        return False
    return all(
        type(a) in (Tensor, torch.nn.Parameter) and a.dtype == torch.float32 and a.device.type == "cpu"
        for a in (x, *matrices)
    )


def product(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ by oneDNN, without a gradient."""
    if not (w.is_contiguous() or w.T.is_contiguous()):  # as of a slice or a broadcast: it would take 100 times as long
        w = w.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


class Linear(Function):
    """x Wᵀ for one or more W by oneDNN, as one product, and its gradients, which are such products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *matrices: Tensor) -> Tensor | tuple[Tensor, ...]:
        ctx.rows = [len(w) for w in matrices]
        w = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        ctx.save_for_backward(x, w, *matrices)
        y = product(x, w)
        return y if len(matrices) == 1 else y.split(ctx.rows, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y = x Wᵀ: ∂x = ∂y W and ∂W = ∂yᵀ x, summed over all vectors."""
        (x, w, *matrices), multiply = ctx.saved_tensors, product
        if torch.is_grad_enabled():  # the gradient is to have one itself
            w, multiply = torch.cat(matrices), F.linear
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, -1)
        dx = multiply(gradient, w.T) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *[None] * len(gradients)
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        if w.numel() <= SMALL:
            dw = gradient.T @ x
        elif w.shape[0] > w.shape[1]:  # oneDNN copies its first argument if it is transposed: the smaller of the two
            dw = multiply(x.T, gradient.T).T
        else:
            dw = multiply(gradient.T, x.T)
        return dx, *dw.split(ctx.rows)


# --------------------------------------------------------------------------------------------- attention

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
PIECE = 128
"""Queries at a time."""
DEFINITION = "e3c6d61198df516b", "ac9e6f91be6262f1"
"""Digests of the definition that is computed here in other ways, as in `digests`."""


def attention_fast(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
    written_out: Attention,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """The same as `written_out`, the definition, computed faster: fused, or in pieces where the CPU's fused kernel is
    slow. Another definition is computed as it is written."""
    if not is_known(written_out):
        return written_out(q, k, v, mask)
    if q.device.type != "cpu" or q.shape[2] == 1 or q.numel() == 0 or torch.compiler.is_compiling():
        return attention_fused(q, k, v, mask)
    if mask is None and q.dtype != torch.bfloat16:
        return attention_fused(q, k, v, mask)
    return attention_in_pieces(q, k, v, mask, written_out)


@torch.compiler.assume_constant_result
def is_known(written_out: Attention) -> bool:
    """Whether it is the definition for which `attention_fast` is written, by its source: a reader may change it."""
    return any(map(eq, digests_of(written_out), DEFINITION))


@cache
def digests_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Those of its source, without indentation; none if it has none. Checks of types around it change nothing, other
    wrappers do."""
    inner: Any = function
    while re.search("jaxtyping|beartype", getattr(getattr(inner, "__code__", None), "co_filename", "")):
        inner = inner.__wrapped__
    with suppress(OSError, TypeError):
        return tuple(digests(dedent(inspect.getsource(getattr(inner, "__code__", inner)))))
    return ()


def attention_fused(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """The same without ever holding all the scores. Dao et al. 2022 (FlashAttention), algorithm 1."""
    group = q.shape[1] // k.shape[1]
    if group == 1 or mask is None or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=group > 1)
    # The queries of one group are concatenated, as if they were one longer sequence, so that keys are read only once.
    q = q.unflatten(1, (-1, group)).flatten(2, 3)
    return F.scaled_dot_product_attention(q, k, v, mask.repeat(1, 1, group, 1)).unflatten(2, (group, -1)).flatten(1, 2)


def attention_in_pieces(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads slots head_dim"],
    v: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 seq slots"] | None,
    written_out: Attention,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """`written_out` in bfloat16, else `attention_fused`, for PIECE queries at a time, without keys that none of them
    sees.

    On a CPU this is faster: the fused kernel also computes what the mask hides, and is slow for bfloat16.
    """
    if mask is None:
        mask = torch.ones(len(q), 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    attention_of = written_out if q.dtype == torch.bfloat16 else attention_fused
    pieces: list[Tensor] = []
    for some, seen in zip(q.split(PIECE, 2), mask.split(PIECE, 2), strict=True):
        end = int(seen.any((0, 1, 2)).nonzero()[-1]) + 1
        pieces.append(attention_of(some, k[:, :, :end], v[:, :, :end], seen[..., :end]))
    return torch.cat(pieces, 2)
