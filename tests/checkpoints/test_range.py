"""No finite weight becomes infinite, in any dtype: the tensor is named instead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llucid.arrays.quantize import quantize_matrix
from llucid.arrays.quantized import Quantized
from llucid.checkpoints import Model, convert, load, save
from llucid.errors import LlucidError
from llucid.weights import tensors, to
from tests.checkpoints.models import model_of, same
from tests.configs import CONFIGS

CONFIG = replace(CONFIGS["one for two"], norm_eps=1e-5)
UP = "blocks.0.feed_forward.up"


def model_with(number: float, dtype: torch.dtype) -> Model:
    """A model with this number in a matrix."""
    model = model_of(CONFIG)
    weights = to(model.weights, dtype)
    weights.blocks[0].feed_forward.up[3, 5] = number
    return model._replace(weights=weights)


@pytest.mark.parametrize(
    ("number", "own", "dtype", "message"),
    [
        (1e5, torch.bfloat16, "float16", "99840 is too large for float16; use bfloat16 or float32"),
        (-1e5, torch.float32, "float16", "100000 is too large for float16; use bfloat16 or float32"),
        (3.4e38, torch.float32, "bfloat16", "3.4e+38 is too large for bfloat16; use float32"),
        (1e39, torch.float64, "float32", "1e+39 is too large for float32"),
    ],
)
def test_a_dtype_that_cannot_hold_a_weight_is_refused(
    number: float, own: torch.dtype, dtype: str, message: str, tmp_path: Path
) -> None:
    save(model_with(number, own), tmp_path / "m")
    with pytest.raises(LlucidError) as caught:
        load(tmp_path / "m", dtype=dtype, device="cpu")
    assert str(caught.value) == f"{tmp_path / 'm'}: {UP}: {message}"
    names = {"huggingface": "model.layers.0.mlp.up_proj.weight", "gguf": "blk.0.ffn_up.weight"}
    names |= {"meta": "layers.0.feed_forward.w3.weight"} | ({"llama2c": UP} if dtype == "float32" else {})
    for format, name in names.items():
        out = tmp_path / format
        with pytest.raises(LlucidError) as caught:
            convert(tmp_path / "m", out, format, dtype=dtype)
        assert str(caught.value) == f"{name}: {message}"
        assert not out.exists()


def test_numbers_that_a_dtype_holds_and_those_that_were_infinite_before(tmp_path: Path) -> None:
    for number in (65519.0, float("inf"), float("nan")):  # 65519 rounds to 65504, float16's largest
        model = model_with(number, torch.float32)
        save(model, tmp_path / f"{number}")
        found = load(tmp_path / f"{number}", dtype="float16", device="cpu").weights
        assert torch.equal(found.blocks[0].feed_forward.up.nan_to_num(), up(model).half().nan_to_num())
    convert(tmp_path / "65519.0", tmp_path / "a.gguf", "gguf", dtype="float16")
    assert same(
        load(tmp_path / "a.gguf", device="cpu").weights,
        to(load(tmp_path / "65519.0", device="cpu").weights, torch.float16),
    )


def up(model: Model) -> Any:
    return model.weights.blocks[0].feed_forward.up


@pytest.mark.parametrize(("bits", "largest"), [(8, 65504.0 * 127), (4, 65504.0 * 8)])
def test_scales_that_cannot_hold_a_weight_are_refused(bits: Any, largest: float, tmp_path: Path) -> None:
    save(model_with(largest, torch.float32), tmp_path / "whole")
    found = load(tmp_path / "whole", quantize="int8" if bits == 8 else "int4", device="cpu")
    assert isinstance(up(found), Quantized)
    assert up(found).dense()[3, 5] == largest
    save(model_with(largest * 1.01, torch.float32), tmp_path / "larger")
    message = f"{largest * 1.01:g} is too large for the float16 scales of {bits} bits; use bfloat16 or float32"
    with pytest.raises(LlucidError) as caught:
        load(tmp_path / "larger", quantize="int8" if bits == 8 else "int4", device="cpu")
    assert str(caught.value) == f"{tmp_path / 'larger'}: {UP}: {message}"
    with pytest.raises(LlucidError) as caught:
        convert(tmp_path / "larger", tmp_path / "a.gguf", "gguf", dtype=f"q{bits}_0")
    assert str(caught.value) == f"blk.0.ffn_up.weight: {message}"


def test_quantised_weights_are_not_read_in_a_dtype_that_is_too_small(tmp_path: Path) -> None:
    save(model_with(1e5, torch.float32), tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "a.gguf", "gguf", dtype="q8_0")
    for quantize in (None, "int8"):
        with pytest.raises(LlucidError, match=rf"a\.gguf: {UP}: 100012 is too large for float16; use bfloat16 or"):
            load(tmp_path / "a.gguf", dtype="float16", quantize=quantize, device="cpu")
        assert load(tmp_path / "a.gguf", dtype="bfloat16", quantize=quantize, device="cpu")
    small = quantize_matrix(torch.full((2, 32), 20.0 * 127), 8)
    assert (small.to(dtype=torch.float16).dense() == 20 * 127).all()


def test_a_norm_beyond_the_dtype_of_the_matrices(tmp_path: Path) -> None:
    """Mapped weights are read in one dtype, too, where PyTorch reads them."""
    model = model_of(CONFIG, dtype=torch.float16)
    save(model._replace(weights=model.weights._replace(norm=torch.full((32,), 1e5))), tmp_path / "m")
    with pytest.raises(LlucidError, match=r"norm: 100000 is too large for float16"):
        load(tmp_path / "m", device="cpu")
    with pytest.raises(LlucidError, match=r"100000 is too large for float16"):
        tensors(load(tmp_path / "m", device="cpu", mapped=True).weights)


@pytest.mark.parametrize("format", ["gguf", "llama2c", "meta"])
def test_rounding_float64_is_said(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_with(0.1, torch.float64), tmp_path / "out", format)
    rounded = f"note: {tmp_path / 'out'}: float64 numbers are rounded to float32, which is the most that this format"
    assert capsys.readouterr().err.startswith(rounded) == (format != "meta")
