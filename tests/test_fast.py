"""oneDNN's products against the definition in float64, and the cases that are left to PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from llucid import fast
from llucid.arrays.quantize import quantize_matrix
from llucid.fast import linear, linear_each

has_onednn = pytest.mark.skipif(not fast.HAS_ONEDNN, reason="this processor has no AVX-512, or PyTorch no oneDNN")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what oneDNN multiplies, as it happens; it multiplies the smallest matrices too."""
    shapes: list[tuple[int, ...]] = []

    def counted(x: Tensor, w: Tensor) -> Tensor:
        shapes.append((*x.shape, *w.shape))
        return real(x, w)

    real = fast.product
    monkeypatch.setattr(fast, "product", counted)
    monkeypatch.setattr(fast, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(fast, "LARGE", 0)
    monkeypatch.setattr(fast, "SMALL", 0)
    return shapes


def bound(x: Tensor, w: Tensor) -> Tensor:
    """The largest rounding error of a sum of n products in float32: n · 2⁻²⁴ · Σ|x||w| (Higham 2002, §3.1)."""
    return x.shape[-1] * 2**-24 * (x.abs() @ w.abs().mT)


@has_onednn
@pytest.mark.parametrize("batch", [(), (1,), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 48), (48, 16), (33, 65)])
def test_products_and_gradients_equal_the_definition(
    products: list[Any], batch: tuple[int, ...], rows: int, columns: int
):
    torch.manual_seed(0)
    x, w = torch.randn(*batch, columns, requires_grad=True), torch.randn(rows, columns, requires_grad=True)
    y = linear(x, w)
    dy = torch.randn(*batch, rows)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    assert (len(products), dx.shape, dw.shape) == (3, x.shape, w.shape)
    wide_x, wide_w, wide_dy = x.detach().double(), w.detach().double(), dy.double()
    rows_x, rows_dy = wide_x.reshape(-1, columns), wide_dy.reshape(-1, rows)
    assert ((y - wide_x @ wide_w.mT).abs() <= bound(wide_x, wide_w)).all()
    assert ((dx - wide_dy @ wide_w).abs() <= bound(wide_dy, wide_w.mT)).all()
    assert ((dw - rows_dy.mT @ rows_x).abs() <= bound(rows_dy.mT, rows_x.mT)).all()


@has_onednn
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own use, in forward mode
@pytest.mark.parametrize("constant", [True, False])
def test_gradients_of_gradients_and_forward_mode(products: list[Any], constant: bool):
    """As of a gradient penalty: also where the gradient of the product itself is a constant."""
    torch.manual_seed(0)
    x, v, w = (torch.randn(9, 16, requires_grad=True) for _ in range(3))
    dy = torch.randn(9, 9)

    def penalty(first: Any, second: Any) -> tuple[Tensor, ...]:
        y = first(x)
        z = second(torch.tanh(y.sum() * x))
        loss = (z * dy).sum() if constant else (z * dy).sin().sum()
        [dx] = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, v, w))

    found = penalty(lambda x: linear(x, w), lambda x: sum(linear_each(x, (w, None), (v, None))))
    assert products
    expected = penalty(lambda x: F.linear(x, w), lambda x: F.linear(x, w) + F.linear(x, v))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), forward_ad.dual_level():
            y = linear(forward_ad.make_dual(x.detach(), v.detach()), w.detach())
            assert torch.allclose(forward_ad.unpack_dual(y).tangent, F.linear(v, w), rtol=1e-5, atol=1e-5)


@has_onednn
def test_slices_and_broadcasts_are_made_dense(products: list[Any], monkeypatch: pytest.MonkeyPatch):
    """oneDNN would multiply such a matrix 100 times as slowly: a slice of a larger one, or the gradient of a sum."""
    strides: list[tuple[int, ...]] = []
    given = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, w, *more: strides.append(w.stride()) or given(x, w, *more)
    )
    x, wide = torch.randn(9, 16), torch.randn(40, 32)
    for w in (wide[:, :16], wide[::2, :16], wide.T[:16].T, wide[:1, :16].expand(40, 16)):
        w = w.detach().requires_grad_()
        y = linear(x, w)
        assert ((y - x.double() @ w.double().mT).abs() <= bound(x.double(), w.detach().double())).all()
        y.sum().backward()
        assert torch.allclose(w.grad, x.sum(0).expand(len(w), 16), rtol=1e-5, atol=1e-5)
    assert all(1 in stride and 0 not in stride for stride in strides)
    assert {max(stride) for stride in strides} <= {9, 16, 20, 40}  # none is that of the wider matrix


@pytest.mark.parametrize(
    ("cpuinfo", "amd"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)", False),
        ("processor\t: 0\nCPU implementer\t: 0x41", False),
    ],
)
def test_oneDNN_is_used_where_it_is_known_to_be_faster(
    cpuinfo: str, amd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(fast, "CPUINFO", tmp_path / "cpuinfo")
    assert fast.is_amd() == amd


def test_torch_func_grad_and_vmap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast, "ONEDNN_IS_FASTER", fast.HAS_ONEDNN)
    monkeypatch.setattr(fast, "LARGE", 0)
    x, w = torch.randn(8, 64), torch.randn(96, 64)
    large = lambda x, w: (linear_each(x, (w, None), (w, None))[1] + linear(x, w)).square().sum()  # noqa: E731
    gradient = torch.func.grad(large, argnums=1)(x, w)
    each = torch.func.vmap(large, in_dims=(0, None))(x, w)
    assert torch.allclose(gradient, 8 * (x @ w.T).T @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(each, 4 * (x @ w.T).square().sum(1), rtol=1e-4)


@has_onednn
def test_only_required_gradients_are_computed(products: list[Any]):
    x, w = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
    linear(x, w).sum().backward()
    assert products == [(4, 8, 6, 8), (6, 4, 8, 4)]
    products.clear()
    linear(x.requires_grad_(), w.detach()).sum().backward()
    assert products == [(4, 8, 6, 8), (4, 6, 8, 6)]
    products.clear()
    with torch.no_grad():
        assert not linear(x, w).requires_grad
    assert products == [(4, 8, 6, 8)]


@has_onednn
def test_several_matrices_are_multiplied_as_one(products: list[Any]):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 12, requires_grad=True)
    matrices = [torch.randn(rows, 12, requires_grad=rows != 4) for rows in (16, 4, 5)]
    pairs = [(w, None) for w in matrices]
    ys = linear_each(x, *pairs)
    dys = [torch.randn(3, 7, len(w)) for w in matrices]
    asked = (x, matrices[0], matrices[2])
    found = torch.autograd.grad(ys, asked, dys)
    assert len(products) == 3
    plain = [F.linear(x, w) for w in matrices]
    torch.testing.assert_close(ys, tuple(plain), rtol=0, atol=12 * 2**-24 * 20)
    torch.testing.assert_close(found, torch.autograd.grad(plain, asked, dys), rtol=0, atol=25 * 2**-24 * 50)
    products.clear()
    with torch.no_grad():  # here concatenating the matrices would be a useless copy
        torch.testing.assert_close(linear_each(x, *pairs), ys, rtol=0, atol=12 * 2**-24 * 20)
    assert len(products) == 3
    double = linear_each(x.double(), *((w.double(), None) for w in matrices))
    torch.testing.assert_close(double[1], x.double() @ matrices[1].double().mT)
    assert len(products) == 3


@has_onednn
def test_gradients_of_strided_and_broadcast_tensors(products: list[Any]):
    torch.manual_seed(0)
    w = torch.randn(5, 12, requires_grad=True)
    x = torch.randn(12, 3, 4, requires_grad=True)
    y, plain = (of(x.permute(1, 2, 0), w).transpose(0, 1) for of in (linear, F.linear))
    for one in (torch.ones(()).expand(4, 3, 5), torch.randn(5, 3, 4).permute(2, 1, 0)):
        found = torch.autograd.grad(y, (x, w), one, retain_graph=True)
        expected = torch.autograd.grad(plain, (x, w), one, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=24 * 2**-24 * 50)
    assert products


def test_other_dtypes_and_devices_are_left_to_pytorch(products: list[Any]):
    x, w = torch.randn(4, 32), torch.randn(16, 32)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(linear(x.to(dtype), w.to(dtype)), F.linear(x.to(dtype), w.to(dtype)))
    meta = linear(x.to("meta"), w.to("meta"))
    assert meta.shape == (4, 16)
    assert products == []


@has_onednn
def test_a_quantised_matrix_equals_its_dequantised_one(products: list[Any]):
    x, w = torch.randn(4, 32), quantize_matrix(torch.randn(16, 32), 8)
    assert torch.equal(linear(x, w), linear(x, w.dense()))
    assert products == [(4, 32, 16, 32)] * 2


@has_onednn
def test_small_products_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch, products: list[Any]):
    monkeypatch.setattr(fast, "LARGE", 4 * 32 * 16)
    linear(torch.randn(3, 32), torch.randn(16, 32))
    assert products == []
    linear(torch.randn(4, 32), torch.randn(16, 32))
    assert products == [(4, 32, 16, 32)]


@has_onednn
def test_the_gradient_of_a_small_matrix_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch, products: list[Any]):
    monkeypatch.setattr(fast, "SMALL", 6 * 8)
    x, w = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
    linear(x, w).sum().backward()
    assert products == [(4, 8, 6, 8)]
    torch.testing.assert_close(w.grad, torch.ones(6, 4) @ x)


@has_onednn
def test_nan_and_infinity_are_kept(products: list[Any]):
    x = torch.tensor([[1.0, float("inf")], [float("nan"), 0.0], [1.0, 2.0]])
    y = linear(x, torch.ones(3, 2))
    assert y[0].isinf().all()
    assert y[1].isnan().all()
    assert torch.equal(y[2], torch.full((3,), 3.0))
    assert products


@has_onednn
def test_each_of_one_matrix_is_one_product(products: list[Any]):
    x, w = torch.randn(1, 4, 8), torch.randn(6, 8, requires_grad=True)
    [y] = linear_each(x, (w, None))
    assert y.equal(linear(x, w))
    assert products
