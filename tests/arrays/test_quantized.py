"""Quantised matrices against the plain ones that they stand for; that their groups are GGUF's, see test_gguf.py."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llucid.arrays.mapped import packed
from llucid.arrays.quantized import AT_ONCE, Quantized, dense, dequantize, quantize, quantize_matrix, to_blocks
from llucid.config import PRESETS, Config
from llucid.llama import llama
from llucid.weights import Weights, count, initialise, leaves, to
from tests.configs import CONFIGS


def drawn(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_no_number_is_farther_off_than_half_a_step(bits: Any, rows: int):
    w = drawn(rows, 96)
    held = quantize_matrix(w, bits)
    largest = w.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
    # Half of a step of max/127; of 8 steps to one side and 7 to the other, the last half step of the other is cut off,
    # which makes it a whole one. float16 rounds the scale itself by 2⁻¹¹ of up to 127 or 8 steps.
    step = largest / {8: 127, 4: 8}[bits]
    assert ((dense(held) - w).abs() <= {8: 0.5 + 127 / 2**11, 4: 1 + 8 / 2**11}[bits] * step).all()
    assert (dense(held) - w).abs().mean() <= 0.3 * step.mean()


@pytest.mark.parametrize("bits", [8, 4])
def test_it_computes_as_what_it_stands_for(bits: Any):
    held, x, some = quantize_matrix(drawn(50, 96), bits), drawn(3, 96), torch.tensor([[49, 0], [16, 17]])
    plain = dense(held)
    assert (held.shape, held.dtype, held.bits, held.numel()) == (plain.shape, plain.dtype, bits, plain.numel())
    assert torch.equal(F.linear(x, held), F.linear(x, plain))
    assert torch.equal(F.linear(x, held, drawn(1, 50)[0]), F.linear(x, plain, drawn(1, 50)[0]))
    assert torch.equal(F.linear(held, drawn(7, 96)), F.linear(plain, drawn(7, 96)))
    assert torch.equal(F.embedding(some, held), plain[some])
    assert isinstance(held.detach(), Quantized)
    assert not quantize_matrix(drawn(50, 96).requires_grad_(), bits).scales.requires_grad
    assert torch.equal(held.T, plain.T)
    assert repr(held) == f"Quantized([50, 96], {bits} bits, torch.float32)"
    half = held.to(torch.bfloat16)
    assert isinstance(half, Quantized)
    assert torch.equal(dense(half), plain.bfloat16())
    assert torch.equal(F.embedding(some, half), plain.bfloat16()[some])
    assert held.to(torch.float32) is held
    away = half.to("meta")
    assert {part.device.type for part in (away, away.numbers, away.scales)} == {"meta"}
    assert away.dtype == torch.bfloat16
    narrow = drawn(50, 96).bfloat16()
    assert torch.equal(dense(quantize_matrix(narrow, bits)), dense(quantize_matrix(narrow.float(), bits)).bfloat16())


@pytest.mark.parametrize("bits", [8, 4])
def test_many_rows_are_made_some_at_a_time(bits: Any):
    w = drawn(AT_ONCE // 256 + 40, 256)
    first, last = quantize_matrix(w[:64], bits), quantize_matrix(w[-8:], bits)
    whole = dense(quantize_matrix(w, bits))
    assert torch.equal(whole[:64], dense(first))
    assert torch.equal(whole[-8:], dense(last))


def test_rows_of_more_numbers_than_are_taken_at_once_are_taken_all_the_same():
    w = drawn(17, AT_ONCE // 16 + 32)
    held = quantize_matrix(w, 8)
    assert held.shape == w.shape
    assert torch.equal(dense(held)[16:, -32:], dense(quantize_matrix(w[16:, -32:], 8)))


@pytest.mark.parametrize(("size", "groups"), [(34, 2049), (18, 2049), (18, 2)])
def test_the_blocks_of_a_file_are_the_blocks_of_the_matrix(size: int, groups: int):
    blocks = torch.randint(256, (17, groups, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(to_blocks(packed(blocks.numpy()).tensor()), blocks)


def bytes_of(weights: Weights) -> int:
    total = 0
    for leaf in leaves(weights):
        parts = (leaf.numbers, leaf.scales) if isinstance(leaf, Quantized) else (leaf,)
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


@pytest.mark.parametrize(("bits", "each"), [(8, 8.5), (4, 4.5)])
def test_a_tree_takes_what_it_should_and_computes_the_same(bits: Any, each: float):
    config = PRESETS["stories15M"].config
    config = Config(**vars(config) | {"layers": 1})
    weights = initialise(config)
    held = quantize(weights, bits)
    assert count(held) == config.parameters
    assert bytes_of(held) * 8 / config.parameters == pytest.approx(each, rel=0.01)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(llama(tokens, held, config), llama(tokens, dequantize(held), config))
    assert all(a is b for a, b in zip(leaves(quantize(held, 4)), leaves(held), strict=True))
    assert {leaf.dtype for leaf in leaves(to(held, torch.bfloat16))} == {torch.bfloat16}


def test_rows_that_are_no_multiple_of_32_stay():
    held = quantize(initialise(CONFIGS["explicit head_dim"]), 8)
    kinds = [isinstance(leaf, Quantized) for leaf in held.blocks[0].attention]
    assert kinds == [True, True, True, False]  # 48 columns
