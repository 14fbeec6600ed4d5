"""Quantised matrices against the dequantised ones. tests/checkpoints compares their groups with GGUF's."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llucid.arrays import Quantized
from llucid.arrays.quantize import quantize_matrix
from llucid.arrays.quantized import CHUNK, FORMS, from_blocks, to_blocks
from llucid.config import Config
from llucid.fast import embed, linear
from llucid.llama import llama
from llucid.llama_module import Llama
from llucid.presets import PRESETS
from llucid.weights import Weights, count, dequantize, initialise, leaves, parameter_count, quantize, to
from tests.arrays.blocks import random_quantized
from tests.configs import CONFIGS


def random_matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_the_error_is_at_most_half_a_step(bits: Any, rows: int):
    w = random_matrix(rows, 96)
    held = quantize_matrix(w, bits)
    largest = w.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
    # In 8 bits, half a step of max/127. In 4 bits there are 8 steps to one side and 7 to the other, where numbers are
    # clamped: there the error is up to a whole step. float16 also rounds the scale: 2⁻¹¹ of up to 127 or 8 steps.
    step = largest / {8: 127, 4: 8}[bits]
    assert ((held.dense() - w).abs() <= {8: 0.5 + 127 / 2**11, 4: 1 + 8 / 2**11}[bits] * step).all()
    assert (held.dense() - w).abs().mean() <= 0.3 * step.mean()


@pytest.mark.parametrize("bits", [8, 4])
def test_results_equal_those_of_the_dequantised_matrix(bits: Any):
    held, x, ids = quantize_matrix(random_matrix(50, 96), bits), random_matrix(3, 96), torch.tensor([[49, 0], [16, 17]])
    plain = held.dense()
    assert (held.shape, held.ndim, held.dtype, held.device) == (plain.shape, 2, plain.dtype, plain.device)
    assert (held.form, held.numel()) == (f"Q{bits}_0", plain.numel())
    assert torch.equal(linear(x, held), F.linear(x, plain))
    assert torch.equal(embed(ids, held), plain[ids])
    assert not quantize_matrix(random_matrix(50, 96).requires_grad_(), bits).scales.requires_grad
    assert repr(held) == f"Quantized([50, 96], Q{bits}_0, torch.float32)"
    half = held.to(dtype=torch.bfloat16)
    assert torch.equal(half.dense(), plain.bfloat16())
    assert torch.equal(embed(ids, half), plain.bfloat16()[ids])
    away = half.to("meta")
    assert {part.device.type for part in (away, away.numbers, away.scales)} == {"meta"}
    assert away.dtype == torch.bfloat16
    narrow = random_matrix(50, 96).bfloat16()
    assert torch.equal(quantize_matrix(narrow, bits).dense(), quantize_matrix(narrow.float(), bits).dense().bfloat16())


@pytest.mark.parametrize("bits", [8, 4])
def test_numpy_arrays_share_memory_with_tensors(bits: Any):
    held = quantize_matrix(random_matrix(50, 96), bits)
    outside = Quantized(held.form, held.numbers.numpy(), held.scales.numpy(), held.rows, "float32")
    assert (outside.shape, outside.device, outside.numel()) == (held.shape, "cpu", held.numel())
    assert outside.tensor().numbers.data_ptr() == held.numbers.data_ptr()
    assert outside.tensor().dtype == torch.float32
    assert torch.equal(outside.dense(), held.dense())
    assert torch.equal(embed(torch.tensor([3, 40]), outside), held.dense()[[3, 40]])
    assert outside.to(dtype=torch.float16).dense().dtype == torch.float16


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_in_chunks_of_rows(bits: Any):
    w = random_matrix(CHUNK // 256 + 40, 256)
    first, last = quantize_matrix(w[:64], bits), quantize_matrix(w[-8:], bits)
    whole = quantize_matrix(w, bits).dense()
    assert torch.equal(whole[:64], first.dense())
    assert torch.equal(whole[-8:], last.dense())


def test_rows_longer_than_a_chunk():
    w = random_matrix(17, CHUNK // 16 + 32)
    held = quantize_matrix(w, 8)
    assert held.shape == w.shape
    assert torch.equal(held.dense()[16:, -32:], quantize_matrix(w[16:, -32:], 8).dense())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 2049])
def test_blocks_of_a_file_survive_unchanged(form: str, count: int):
    size = FORMS[form].size
    blocks = torch.randint(256, (35, count, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    done: list[int] = []
    held = from_blocks(blocks.numpy(), form, lambda rows: done.append(len(rows)))
    assert torch.equal(to_blocks(held), blocks)
    assert sum(done) == len(blocks)
    assert held.numbers.nbytes + held.scales.nbytes == 48 * count * size


@pytest.mark.parametrize("form", FORMS)
def test_rows_products_and_copies_equal_those_of_the_dequantised_matrix(form: str):
    """In every form of GGUF; for the numbers themselves see test_gguf_package.py."""
    held, ids = random_quantized(form, 50, 512), torch.tensor([[49, 0], [16, 17]])
    plain, x = held.dense(), random_matrix(3, 512)
    assert plain.std() > 0.2
    assert (held.shape, held.form) == ((50, 512), form)
    assert torch.equal(embed(ids, held), plain[ids])
    assert torch.equal(linear(x, held), F.linear(x, plain))
    assert torch.equal(held.to(dtype=torch.bfloat16).dense(), plain.bfloat16())
    twin = copy.deepcopy(held)
    assert twin.numbers.data_ptr() != held.numbers.data_ptr()
    assert torch.equal(twin.dense(), plain)
    assert held.to("meta").dense().device.type == "meta"


def bytes_of(weights: Weights) -> int:
    total = 0
    for leaf in leaves(weights):
        parts = (leaf.numbers, leaf.scales) if isinstance(leaf, Quantized) else (leaf,)
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


@pytest.mark.parametrize(("bits", "each"), [(8, 8.5), (4, 4.5)])
def test_quantised_weights_have_the_right_size_and_logits(bits: Any, each: float):
    config = PRESETS["stories15M"].config
    config = Config(**vars(config) | {"layers": 1})
    weights = initialise(config)
    held = quantize(weights, bits)
    assert count(held) == parameter_count(config)
    assert bytes_of(held) * 8 / parameter_count(config) == pytest.approx(each, rel=0.01)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(llama(tokens, held, config), llama(tokens, dequantize(held), config))
    assert all(a is b for a, b in zip(leaves(quantize(held, 4)), leaves(held), strict=True))
    assert {leaf.dtype for leaf in leaves(to(held, torch.bfloat16))} == {torch.bfloat16}
    assert (to(held, torch.bfloat16).dtype, to(held, device="meta").device.type) == (torch.bfloat16, "meta")
    twin = copy.deepcopy(held)
    assert torch.equal(llama(tokens, twin, config), llama(tokens, held, config))
    assert twin.embedding.scales.data_ptr() != held.embedding.scales.data_ptr()
    plain = Llama.from_weights(held, config).weights()
    assert all(torch.equal(a, b) for a, b in zip(leaves(plain), leaves(dequantize(held)), strict=True))


def test_rows_that_are_not_a_multiple_of_32_stay_plain():
    held = quantize(initialise(CONFIGS["explicit head_dim"]), 8)
    kinds = [isinstance(leaf, Quantized) for leaf in leaves(held.blocks[0].attention)]
    assert kinds == [True, True, True, False]  # 48 columns


@pytest.mark.parametrize("ids", [[-1], [3, 65], [79, 0], [-65]])
def test_rows_that_do_not_exist(ids: list[int]) -> None:
    """Not those of the last tile's padding, nor those from the end."""
    w = quantize_matrix(torch.randn(65, 64), 8)
    with pytest.raises(IndexError, match="there are rows 0 to 64"):
        w.rows_of(torch.tensor(ids))
    assert w.rows_of(torch.tensor([[0, 64]])).equal(w.dense()[torch.tensor([[0, 64]])])
