"""llama.c against the equations on the same weights, its threads, its build, and the fallback to PyTorch."""

import ctypes
import itertools
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llucid import fast
from llucid.cache import PAGE, Memory, empty_cache
from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.generation import Batch, Request, Sampling, generator
from llucid.llama import llama
from llucid.model import Model
from llucid.native import build
from llucid.native.build import FLAGS, X86, compiler, load
from llucid.native.step import DecodeStep, decode_step, prefetching
from llucid.native.types import layout
from llucid.weights import Weights, assemble, dequantize, initialise, leaves, named_leaves, quantize, to, tree_map
from tests.arrays.blocks import random_quantized
from tests.configs import CONFIGS
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
PLAIN = (*FLAGS, "-DPLAIN")
"""Compiles the portable loops instead of those for AVX-512."""
NARROWER = [(*PLAIN, "-mno-avx512f"), (*PLAIN, "-mno-avx")] if platform.machine().lower() in X86 else []
"""Vector registers of 8 and of 4 numbers on x86; on other processors PLAIN already has 4."""
EVERY_BUILD = [FLAGS, PLAIN, *NARROWER]
CONFIG = Config(
    dim=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_dim=96, vocab_size=53, context=1024,
    rope_theta=500_000.0, rope_scaling=RopeScaling(original_context=256), tied_embeddings=True,
    attention_bias=True, mlp_bias=True,
)  # fmt: skip
"""Row lengths are multiples of 32; the vocabulary is not a multiple of 16."""
CONFIG_256 = Config(**vars(CONFIG) | {"dim": 256, "head_dim": 64, "ffn_dim": 512})
"""Row lengths are multiples of 256, as K-quants require."""
QUANTIZED_FORMS = ["Q8_0", "Q4_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M"]
"""The forms of quantised matrices. Q4_K_M mixes Q4_K and Q6_K, as files of that name do."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def random_weights(config: Config) -> Weights:
    """Random weights with non-constant gains and biases, large enough that the scores differ."""
    gains = {1: lambda leaf: leaf * torch.linspace(0.5, 1.5, len(leaf)), 2: lambda leaf: leaf * 3}
    weights = tree_map(lambda leaf: gains[leaf.ndim](leaf), initialise(config))
    for path, leaf in named_leaves(weights):
        if path.endswith("_bias"):
            leaf += torch.linspace(-0.5, 0.5, len(leaf)) ** 3
    return weights


def quantized_weights(form: str, config: Config | None = None) -> tuple[Weights, Config]:
    """Random weights in a quantised form, for this config or for one whose rows the form allows."""
    if form in ("Q8_0", "Q4_0"):
        return quantize(random_weights(config or CONFIG), 8 if form == "Q8_0" else 4), config or CONFIG
    config, seeds = config or CONFIG_256, itertools.count()
    of = {"value": "Q6_K", "down": "Q6_K", "embedding": "Q6_K"} if form == "Q4_K_M" else {}

    def draw(path: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return torch.linspace(-0.1, 0.1, *shape) if path.endswith("_bias") else torch.linspace(0.5, 1.5, *shape)
        chosen = of.get(path.rpartition(".")[2], form.removesuffix("_M"))
        return random_quantized(chosen, *shape, seed=next(seeds), size=0.4)

    return assemble(config, draw), config


def weights_of_form(form: Any) -> tuple[Weights, Config]:
    """Random weights in a dtype or in a quantised form, with their config."""
    return (to(random_weights(CONFIG), form), CONFIG) if isinstance(form, torch.dtype) else quantized_weights(form)


def random_ids(config: Config, count: int) -> list[int]:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def poisoned_memory(config: Config, slots: int = 2048, dtype: str = "float32") -> Memory:
    """A cache filled with NaN, so that reading an unwritten slot spoils the scores."""
    memory = Memory(config, slots, dtype)
    for array in (*memory.keys, *memory.values):
        array[:] = 0x7F00 if array.dtype == np.uint16 else np.nan
    return memory


def one_at_a_time(step: DecodeStep, tokens: list[int], memory: Memory | None = None) -> Tensor:
    """The scores after each token, with one call for each token."""
    memory = memory or poisoned_memory(step.config)
    pages = np.arange(memory.slots // PAGE, dtype=np.int32)
    return torch.cat([torch.from_numpy(step([([token], at, pages)], memory, [0])) for at, token in enumerate(tokens)])


def all_at_once(
    step: DecodeStep, rows: list[list[int]], memory: Memory | None = None, at: int = 0, order: Any = None
) -> Tensor:
    """The scores after each token of equally long texts, in one call; `order` lists the pages to use."""
    memory = memory or poisoned_memory(step.config)
    count = -(-(at + max(map(len, rows))) // PAGE)
    order = np.arange(len(rows) * count) if order is None else order
    pages = [np.array(order[row * count : (row + 1) * count], np.int32) for row in range(len(rows))]
    scores = step([(row, at, own) for row, own in zip(rows, pages, strict=True)], memory, range(sum(map(len, rows))))
    return torch.from_numpy(scores).view(len(rows), len(rows[0]), -1)


def build_step(weights: Weights, config: Config, flags: tuple[str, ...] = FLAGS) -> DecodeStep:
    return DecodeStep(weights, config, load(flags))


def reference(weights: Weights, config: Config, tokens: list[int]) -> Tensor:
    """The scores by llama.py in float32 over the whole sequence, with dequantised weights."""
    return llama(torch.tensor([tokens]), to(dequantize(weights), torch.float32), config)[0]


# --------------------------------------------------------------------------------------------- against the equations


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_scores_equal_the_equations_for_each_dtype(config: Config, dtype: torch.dtype, flags: tuple[str, ...]):
    weights, tokens = to(random_weights(config), dtype), random_ids(config, 40)
    found = one_at_a_time(build_step(weights, config, flags), tokens)
    expected = reference(weights, config, tokens)
    assert expected.std() > 0.05
    # Both compute activations in float32; only the order of the sums differs.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
def test_scores_equal_the_equations_over_500_positions(flags: tuple[str, ...]):
    weights, tokens = random_weights(CONFIG), random_ids(CONFIG, 500)
    found = one_at_a_time(build_step(weights, CONFIG, flags), tokens)
    torch.testing.assert_close(found, reference(weights, CONFIG, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_cache_is_rounded_as_in_pytorch(dtype: torch.dtype, flags: tuple[str, ...]):
    config = CONFIGS["one for two"]
    weights, tokens = random_weights(config), random_ids(config, 40)
    ours = poisoned_memory(config, 64, str(dtype).removeprefix("torch."))
    theirs = empty_cache(config, 1, 40, weights, dtype)
    found = one_at_a_time(build_step(weights, config, flags), tokens, ours)
    expected: list[Tensor] = []
    cache = theirs
    for token in tokens:
        logits, cache = llama(torch.tensor([[token]]), weights, config, cache)
        expected.append(logits[0])
    # The float32 values can differ in their last bit, and then round to neighbours: 2⁻⁷ apart at most, in bfloat16.
    for mine, other in zip((*ours.tensors[0], *ours.tensors[1]), (*theirs.keys, *theirs.values), strict=True):
        assert (mine[:, :40] == other).float().mean() > 0.99
        torch.testing.assert_close(mine[:, :40], other, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-3, rtol=0)


def round_groups(x: Tensor) -> Tensor:
    """Rounds activations as llama.c does before a quantised product: to 8 bits in groups of 32."""
    groups = x.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127 / largest)).round() * (largest / 127)).flatten(-2)


@pytest.mark.parametrize("flags", EVERY_BUILD, ids=lambda flags: " ".join(flags[len(FLAGS) :]) or "native")
@pytest.mark.parametrize("form", QUANTIZED_FORMS)
def test_scores_equal_the_equations_for_quantised_weights(
    form: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    config = replace(CONFIG if form in ("Q8_0", "Q4_0") else CONFIG_256, attention_bias=False, mlp_bias=False)
    weights, config = quantized_weights(form, config)  # biases would put more values near a half
    tokens = random_ids(config, 60)
    found = one_at_a_time(build_step(weights, config, flags), tokens)
    exact = reference(weights, config, tokens)
    # Rounding to 127 steps has an error of about 1/127/√12 of a group's largest number, which is 2 to 3 times a typical
    # one: 0.6 % of a product. Nine products in a row make it at most a tenth of the scores' deviation.
    assert (found - exact).square().mean().sqrt() < 0.1 * exact.std()
    linear = F.linear
    monkeypatch.setattr(fast, "use_onednn", lambda x, *matrices: False)
    monkeypatch.setattr(F, "linear", lambda x, w, bias=None: linear(round_groups(x), w, bias))
    rows = torch.tensor(tokens).view(20, 3)  # short texts: a difference spreads to later tokens
    found = all_at_once(build_step(weights, config, flags), rows.tolist()).flatten(0, 1)
    same = llama(rows, to(dequantize(weights), torch.float32), config).flatten(0, 1)
    # With the same rounding in PyTorch the scores agree, except where a last bit moved a value across a half.
    assert ((found - same).abs().amax(1) < 2e-5 * exact.std()).float().mean() > 0.7
    assert (found - same).square().mean().sqrt() < 0.01 * exact.std()


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_that_are_not_multiples_of_32_are_used_unquantised(bits: Any):
    config = Config(**vars(CONFIG) | {"ffn_dim": 172, "vocab_size": 65, "tied_embeddings": False})
    weights, tokens = quantize(random_weights(config), bits), random_ids(config, 30)
    found = one_at_a_time(build_step(weights, config), tokens)
    exact = reference(weights, config, tokens)
    assert (found - exact).square().mean().sqrt() < 0.1 * exact.std()


@pytest.mark.parametrize("form", [torch.float32, "Q8_0", "Q4_K_M"])
def test_the_number_of_threads_does_not_change_a_bit(form: Any):
    weights, config = weights_of_form(form)
    step, tokens, found = build_step(weights, config), random_ids(config, 20), []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        found.append(one_at_a_time(step, tokens))
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("flags", EVERY_BUILD, ids=lambda flags: " ".join(flags[len(FLAGS) :]) or "native")
@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, torch.float16, *QUANTIZED_FORMS])
def test_a_text_scores_bit_for_bit_the_same_among_others(form: Any, flags: tuple[str, ...]):
    weights, config = weights_of_form(form)
    step, rows = build_step(weights, config, flags), torch.tensor(random_ids(config, 25 * 40)).view(25, 40)
    alone = torch.stack([one_at_a_time(step, row) for row in rows.tolist()])
    assert torch.equal(all_at_once(step, rows.tolist(), poisoned_memory(config)), alone)
    for count in (*range(1, 12), 25):  # every remainder of the number of vectors in one product
        memory = poisoned_memory(config)
        first = all_at_once(step, rows[:count, :1].tolist(), memory)
        then = all_at_once(step, rows[:count, 1:4].tolist(), memory, at=1)
        assert torch.equal(torch.cat([first, then], 1), alone[:count, :4])


@pytest.mark.parametrize("flags", EVERY_BUILD[::2], ids=["native", "narrower"][: len(EVERY_BUILD[::2])])
@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, "Q8_0", "Q4_K_M", "Q5_K"])
def test_pieces_of_any_size_on_any_pages_score_bit_for_bit_the_same(form: Any, flags: tuple[str, ...]):
    """Three texts cut at random, with scores for some tokens only and pages scattered in memory."""
    weights, config = weights_of_form(form)
    texts = torch.tensor(random_ids(config, 3 * 150)).view(3, 150).tolist()
    step = build_step(weights, config, flags)
    alone = [one_at_a_time(step, text) for text in texts]
    for seed in range(5):
        rng, memory, done = np.random.default_rng(seed), poisoned_memory(config), [0, 0, 0]
        pages = rng.permutation(1024 // PAGE).astype(np.int32)[: 3 * -(-150 // PAGE)].reshape(3, -1)
        while any(length < 150 for length in done):
            sizes = [int(rng.integers(0, min(50, 150 - length) + 1)) for length in done]
            parts = [(texts[n][done[n] : done[n] + size], done[n], pages[n]) for n, size in enumerate(sizes) if size]
            if not parts:
                continue
            flat = [(n, done[n] + at) for n, size in enumerate(sizes) for at in range(size)]
            wanted = [at for at in range(len(flat)) if rng.random() < 0.5]
            found = torch.from_numpy(step(parts, memory, wanted))
            assert found.shape == (len(wanted), config.vocab_size)
            for row, at in zip(found, wanted, strict=True):
                n, position = flat[at]
                assert torch.equal(row, alone[n][position])
            done = [length + size for length, size in zip(done, sizes, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_that_are_split_into_blocks_equal_single_vectors(dtype: torch.dtype) -> None:
    """An odd number of rows, and columns that exceed the L1 cache and are not a multiple of a block."""
    config = Config(
        dim=1030, layers=1, heads=3, kv_heads=1, head_dim=6, ffn_dim=2100, vocab_size=53, context=16,
        tied_embeddings=True,
    )  # fmt: skip
    weights = to(random_weights(config), dtype)
    step, tokens = build_step(weights, config), random_ids(config, 11)
    assert torch.equal(all_at_once(step, [tokens])[0], one_at_a_time(step, tokens))


@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, torch.float16, *QUANTIZED_FORMS])
def test_the_prefetch_distance_does_not_change_a_bit(form: Any, monkeypatch: pytest.MonkeyPatch):
    weights, config = weights_of_form(form)
    step, rows = build_step(weights, config), torch.tensor(random_ids(config, 25 * 4)).view(25, 4).tolist()
    found: list[Tensor] = []
    forced = ctypes.c_int32.in_dll(load(), "llama_forced")
    for distance in (0, 1024, 4096, 8192):
        monkeypatch.setattr(forced, "value", distance)
        found.append(torch.cat([all_at_once(step, rows[:count]) for count in (1, 3, 8, 25)]))
    assert all(torch.equal(other, found[0]) for other in found)


def compile_c(source: str, tmp_path: Path) -> ctypes.CDLL:
    """A shared library built from C source that includes llama.c's headers."""
    (tmp_path / "part.c").write_text(source)
    tuned = "-march=native" if platform.machine().lower() in X86 else "-mcpu=native"
    command = [*compiler(), *FLAGS, tuned, "-I", str(ROOT / "llucid"), str(tmp_path / "part.c")]
    subprocess.run([*command, "-o", str(tmp_path / "part.so"), "-lm"], check=True)
    return ctypes.CDLL(str(tmp_path / "part.so"))


@pytest.mark.parametrize(
    ("halves", "chosen"),
    [
        (([10, 10, 10, 7], [10, 10, 10, 7]), 0),  # no prefetching is slow elsewhere, but the fastest here
        (([10, 11, 9, 8], [10, 11, 9, 8.5]), 0),
        (([10, 11, 8, 9], [10, 11, 8, 9]), 1024),
        (([10, 9.8, 9.7, 9.6], [10, 9.8, 9.7, 9.6]), 4096),  # not clearly faster
        (([10, 9, 10, 5], [10, 9, 10, 30]), 8192),  # the last one was disturbed: only 8192 was faster in both halves
        (([10, 9, 5, 5], [10, 10, 10, 10]), 4096),
    ],
)
def test_a_prefetch_distance_is_chosen_if_it_is_clearly_faster_in_both_halves(halves: Any, chosen: int, tmp_path: Path):
    library = compile_c(TRIAL, tmp_path)
    found = [library.trial((ctypes.c_float * 4)(*halves[0]), (ctypes.c_float * 4)(*halves[1])) for _ in range(3)]
    assert found == [chosen] * 3


def test_a_trial_ends_after_some_tokens_and_its_choice_is_reported() -> None:
    config = Config(
        dim=512, layers=1, heads=4, kv_heads=4, head_dim=128, ffn_dim=1024, vocab_size=600, context=64,
        tied_embeddings=True,
    )  # fmt: skip
    one_at_a_time(build_step(initialise(config), config), random_ids(config, 60))
    assert ("float32" in prefetching()) == ("avx512_vnni" in build.processor())


TRIAL = """
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
static const int32_t distances[] = {4096, 8192, 1024, 0};
#include "native/ahead.h"
int trial(const float *first, const float *second) {  /* for kind 2; −1 if it runs at the wrong times */
    struct Trial *t = &trials[2];
    t->products = AGAIN;
    choose_distances();
    if (!t->running) return -1;
    for (t->count = 0; t->count < SAMPLES; t->count++) {
        int distance = t->count % 4, slow = t->count % 7 == 3;  /* outliers */
        t->samples[t->count].distance = distance;
        t->samples[t->count].seconds = (t->count < SAMPLES / 2 ? first : second)[distance] * (slow ? 50 : 1);
    }
    choose_distances();
    return t->running || llama_ahead[2] != (int32_t)ahead_of(2) + 1 ? -1 : (int)ahead_of(2);
}
"""


def test_beside_other_programs_fewer_threads_run_where_that_is_faster(tmp_path: Path):
    library = compile_c(BUSY_MACHINE, tmp_path)

    def periods(count: int, paces: dict[int, int], stalled: int) -> list[int]:
        """The number of threads in each period, where a step takes paces[threads]; `stalled` if threads wait long."""
        return [library.period(2, paces[library.fits(2)], stalled) for _ in range(count)]

    quiet, busy = {1: 90, 2: 50}, {1: 90, 2: 150}
    assert periods(40, quiet, 0) == [2] * 40
    assert periods(40, quiet, 1) == [2, 1, *[2] * 17, 1, *[2] * 17, 1, 2, 2]  # tried at times; two are faster
    assert periods(60, busy, 1)[18:].count(2) <= 3
    assert periods(60, quiet, 0)[20:] == [2] * 40
    assert library.fits(1) == 1


BUSY_MACHINE = """
#include <stdint.h>
#include "native/threads.h"
int fits(int threads) { return fit(threads); }
int period(int threads, int pace, int stalled) {
    int taken = fit(threads);
    atomic_store(&pool.stalled, stalled ? PERIOD / 2 : 0);
    learn(threads, PERIOD / pace + 1, PERIOD);
    return taken;
}
"""


def test_several_python_threads_can_share_a_step():
    step, tokens = build_step(random_weights(CONFIG), CONFIG), random_ids(CONFIG, 40)
    alone = one_at_a_time(step, tokens)
    found: list[Tensor] = []
    run = lambda: found.append(one_at_a_time(step, tokens))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(other, alone) for other in found)


def test_idle_threads_sleep():
    one_at_a_time(build_step(random_weights(CONFIG), CONFIG), random_ids(CONFIG, 3))
    begun = time.process_time()  # of all threads together
    time.sleep(0.4)
    assert time.process_time() - begun < 0.2


# --------------------------------------------------------------------------------------------- in the engine


def generate_greedily(
    weights: Weights, config: Config, prompt: list[int], count: int = 30, batch: Batch | None = None
) -> Any:
    """The ids generated greedily, and whether the context slid before each."""
    batch = batch or Batch(Model(config, weights, None))
    batch.add(Request(prompt, Sampling(temperature=0.0), generator(0), lambda token: False, count))
    events = [event for _ in range(count) for event in batch.step()]
    return [event.token for event in events], [event.slid for event in events]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 20])
def test_the_engine_generates_the_same_text_with_and_without_c(length: int, monkeypatch: pytest.MonkeyPatch):
    config = Config(**vars(CONFIG) | {"context": 32, "rope_scaling": None})  # a short context, so that it slides
    weights = tree_map(lambda leaf: leaf * 4 if leaf.ndim == 2 else leaf, random_weights(config))
    with_c = generate_greedily(weights, config, random_ids(config, length))
    monkeypatch.setenv("LLUCID_C", "0")
    assert with_c == generate_greedily(weights, config, random_ids(config, length))
    assert len({*with_c[0]}) > 5
    assert any(with_c[1]) == (length > 3)


def test_c_and_pytorch_share_one_cache():
    """What one of them has read, the other does not read again."""
    weights, prompt = random_weights(CONFIG), random_ids(CONFIG, 12)
    whole, _ = generate_greedily(weights, CONFIG, prompt)
    batch, row = Batch(Model(CONFIG, weights, None)), list(prompt)
    for turn in range(3):
        step = batch.reader.step
        batch.reader.step = None if turn == 1 else step
        before = batch.statistics.prompt_tokens
        row += generate_greedily(weights, CONFIG, row, 10, batch)[0]
        batch.reader.step = step
        # The newest token has no keys and values yet.
        assert batch.statistics.prompt_tokens - before == (12 if turn == 0 else 1)
    assert row[12:] == whole


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily "
    "was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to "
    "help her mom, so she"
)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
def test_the_golden_story(data: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    import llucid
    from llucid.generation import reader

    model = llucid.load(data / "stories260K.bin", tokenizer=data / "tok512.bin")
    steps: list[DecodeStep] = []

    def counted(weights: Weights, config: Config) -> DecodeStep:
        steps.append(build_step(weights, config, flags))
        return steps[-1]

    monkeypatch.setattr(reader, "decode_step", counted)
    assert "".join(llucid.generate(model, max_tokens=200, temperature=0.0)) == STORY
    assert len(steps) == 1


# --------------------------------------------------------------------------------------------- the build


def use_cache_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds into this folder, and forgets earlier builds and warnings."""
    monkeypatch.setenv("LLUCID_CACHE", str(folder))
    for function in (build.load, build.warn):
        function.cache_clear()


NO_SPACE = 'echo "ld: final link failed: No space left on device\ncollect2: error: ld returned 1" >&2; exit 1'
"""The output of a compiler whose disk is full."""


@pytest.fixture
def forget_builds() -> Iterator[None]:
    yield
    for function in (build.load, build.warn):
        function.cache_clear()


@pytest.mark.parametrize(
    ("path", "cc", "reason"),
    [
        ("/nowhere", "", "no C compiler was found"),
        (None, "false", "llama.c could not be built by false (status 1)"),
        (None, "true", "llama.c could not be built by true (it wrote nothing)"),
        (
            None,
            f"sh -c '{NO_SPACE}'",
            "llama.c could not be built by sh (ld: final link failed: No space left on device)",
        ),
        (None, f"{sys.executable} -c 'import sys; sys.exit(\"error: no\")'", "(error: no)"),
    ],
)
def test_without_a_compiler_pytorch_computes_and_one_line_says_so(
    path: str | None,
    cc: str,
    reason: str,
    tmp_path: Path,
    forget_builds: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    weights, prompt = random_weights(CONFIG), random_ids(CONFIG, 5)
    expected = generate_greedily(weights, CONFIG, prompt)
    use_cache_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("CC", cc)
    if path:
        monkeypatch.setenv("PATH", path)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert generate_greedily(weights, CONFIG, prompt) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llucid: PyTorch computes instead of C, more slowly: ")
    assert reason in line
    assert not [*tmp_path.iterdir()]
    assert len(generate_greedily(quantize(weights, 8), CONFIG, prompt)[0]) == 30


def test_only_other_sources_flags_or_compilers_cause_a_new_build(
    tmp_path: Path, forget_builds: None, monkeypatch: pytest.MonkeyPatch
):
    use_cache_folder(tmp_path / "cache", monkeypatch)
    sources, cc = tmp_path / "sources", 'while [ "$1" != -o ]; do shift; done; echo built $$ >> "$2"'
    sources.mkdir()
    copies = [sources / source.name for source in build.SOURCES]
    for source, copy in zip(build.SOURCES, copies, strict=True):
        copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", copies)
    monkeypatch.setenv("CC", f"sh -c '{cc}' once")
    made = [build.built(), build.built(("-O1",))]
    for copy in copies:
        copy.write_bytes(copy.read_bytes() + b"\n")
        made.append(build.built())
    monkeypatch.setenv("CC", f"sh -c '{cc}' again")
    made.append(build.built())
    assert len({*made}) == len(made) == 3 + len(copies)
    assert build.built() == made[-1]
    assert all(len(path.read_text().splitlines()) == 1 for path in made)


def test_a_damaged_library_is_built_again(tmp_path: Path, forget_builds: None, monkeypatch: pytest.MonkeyPatch):
    use_cache_folder(tmp_path, monkeypatch)
    library = build.built()
    whole = library.read_bytes()
    for damage in (whole[:4096], whole[:-1] + b"x"):
        library.write_bytes(damage)
        assert build.built() == library
        assert library.read_bytes() == whole


def test_a_library_that_others_can_write_to_is_never_loaded(
    tmp_path: Path, forget_builds: None, monkeypatch: pytest.MonkeyPatch
):
    use_cache_folder(tmp_path, monkeypatch)
    library = build.built()
    library.chmod(0o777)
    build.built()
    assert library.stat().st_mode & 0o002 == 0  # built again
    tmp_path.chmod(0o777)
    with pytest.raises(build.Unavailable, match="other users can write to the cache folder"):
        build.built()


def test_another_layout_of_the_structs_is_refused(forget_builds: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "layout", lambda: [0, *layout()[1:]])
    build.load.cache_clear()
    with pytest.raises(build.Unavailable, match=r"lays llama\.c's types out otherwise"):
        build.load()


def test_an_unparsable_compiler_command_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "gcc '")
    with pytest.raises(build.Unavailable, match="CC=gcc ' is not a command"):
        build.compiler()


def test_it_is_of_the_llama_py_that_is_here() -> None:
    """After another equation, change llama.c, and then build.py's WRITTEN_FOR; after another comment, the latter."""
    assert tuple(build.digests(build.LLAMA_PY.read_text(encoding="utf-8"))) == build.WRITTEN_FOR


@pytest.mark.parametrize(
    ("old", "new", "serves"),
    [
        ('"""', '"""Changed. ', True),
        ('"""The Llama', '\ufeff"""The Llama', True),
        ("\n\n\ndef swiglu(", "\n\n\n# Changed\ndef swiglu(", True),
        ("F.silu(", "F.relu(", False),
        (": cache.length]", "cache.length :]", False),
        ("x + drop(", "x - drop(", False),
        ("x + drop(", "x + + * drop(", False),
    ],
)
def test_it_does_not_serve_for_other_equations(
    old: str,
    new: str,
    serves: bool,
    tmp_path: Path,
    forget_builds: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reader changes llama.py, and must see what it says now."""
    text = build.LLAMA_PY.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "llama.py").write_text(text.replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(build, "LLAMA_PY", tmp_path / "llama.py")
    build.load.cache_clear()
    assert (decode_step(random_weights(CONFIG), CONFIG) is not None) == serves
    says = (
        "llucid: PyTorch computes instead of C, more slowly: llama.py has been changed, and llama.c computes what it "
    )
    assert capsys.readouterr().err == ("" if serves else f"{says}said before\n")


def test_a_forked_child_can_decode(tmp_path: Path):
    """It has none of its parent's threads, not even the one whose step was running at the fork."""
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout == "done\n" * 5, done.stderr[-2000:]


def test_the_first_build_says_why_it_takes_longer(
    tmp_path: Path, forget_builds: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    use_cache_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("CC", "true")  # a command that succeeds and builds nothing
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(build.Unavailable):
        load()
    assert capsys.readouterr().err == "llucid: true builds llama.c for this processor, once: a few seconds\n"


def test_other_dtypes_and_devices_are_left_to_pytorch_silently(capsys: pytest.CaptureFixture[str]):
    assert decode_step(to(random_weights(CONFIG), torch.float64), CONFIG) is None
    assert decode_step(tree_map(lambda leaf: leaf.to("meta"), random_weights(CONFIG)), CONFIG) is None
    assert capsys.readouterr().err == ""


def test_arguments_are_checked_before_the_call():
    weights, one = random_weights(CONFIG), np.zeros(1, np.int32)
    step, memory = build_step(weights, CONFIG), poisoned_memory(CONFIG, 2 * PAGE)
    short = weights._replace(embedding=weights.embedding[:-1])
    with pytest.raises(ValueError, match=r"embedding has shape \[52, 64\]; the config says \[53, 64\]"):
        build_step(short, CONFIG)
    for token in (-1, CONFIG.vocab_size, 2**40):
        with pytest.raises(ValueError, match="is not in the vocabulary of 53"):
            step([([3, token], 0, one)], memory, [0])
    for at, count in ((0, PAGE + 1), (PAGE, 1), (-1, 1)):
        with pytest.raises(ValueError, match="are not in the sequence's 1 pages"):
            step([([1] * count, at, one)], memory, [0])
    for page in (2, -1):
        with pytest.raises(ValueError, match=f"is not in the memory of {2 * PAGE} slots"):
            step([([1], 0, one + page)], memory, [0])
    for wanted in (1, -1):
        with pytest.raises(ValueError, match="there are 1 tokens"):
            step([([1], 0, one)], memory, [wanted])
    for other in (CONFIGS["one for two"], Config(**vars(CONFIG) | {"layers": 1})):
        with pytest.raises(ValueError, match="the cache is not 2 times"):
            step([([1], 0, one)], Memory(other, 2 * PAGE, "float32"), [0])
    with pytest.raises(ValueError, match=r"llama\.c has no cache in float64 on cpu"):
        step([([1], 0, one)], Memory(CONFIG, 2 * PAGE, "float64"), [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_from_c_are_numpy_arrays(dtype: torch.dtype):
    """Sampling with PyTorch would leave its threads spinning on the cores that the next step needs."""
    scores = Batch(Model(CONFIG, to(random_weights(CONFIG), dtype), None)).read([1])
    assert (type(scores), scores.dtype) == (np.ndarray, np.float64 if dtype == torch.float64 else np.float32)


def test_scores_that_are_not_finite_are_an_error():
    for form in (torch.float32, *QUANTIZED_FORMS):
        for change in (math.nan, math.inf):
            weights, config = weights_of_form(form)
            weights = weights._replace(norm=weights.norm * change)
            with pytest.raises(LlucidError, match="scores are not finite"):
                generate_greedily(weights, config, [1])


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("form", QUANTIZED_FORMS)
@pytest.mark.parametrize("change", [math.nan, math.inf])
def test_one_scale_that_is_not_finite_reaches_the_scores(change: float, form: str, flags: tuple[str, ...]):
    """Rounding the vectors group by group does not hide it."""
    for matrix in range(7):
        weights, config = quantized_weights(form)
        damaged: Any = [leaf for leaf in leaves(weights.blocks[0]) if leaf.ndim == 2][matrix]
        damaged.scales[0, 0, 5] = change
        scores = all_at_once(build_step(weights, config, flags), [[1, 2, 3]])
        assert not scores.isfinite().all(), f"{matrix=}"


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
def test_a_closed_gate_gives_zero_for_huge_inputs(flags: tuple[str, ...]):
    weights = random_weights(CONFIG)
    weights.embedding.abs_()
    for block in weights.blocks:
        block.feed_forward.gate.fill_(-1e22)  # silu is −10²²/(1 + e^10²²): zero
        block.feed_forward.up.fill_(1e22)
        block.attention.output.zero_()
    found = one_at_a_time(build_step(weights, CONFIG, flags), [1, 2])
    torch.testing.assert_close(found, reference(weights, CONFIG, [1, 2]), atol=1e-4, rtol=0)


def test_the_exponential_is_as_accurate_as_float32_allows(tmp_path: Path):
    """A compiler that reassociates sums would make it less accurate."""
    library = compile_c(EXPONENTIALS, tmp_path)
    x = np.concatenate([np.linspace(-87, 88, 1_000_001), [np.nan, np.inf, -np.inf]]).astype(np.float32)
    found = np.empty_like(x)
    library.exponentials(*(ctypes.c_void_p(array.ctypes.data) for array in (x, found)), ctypes.c_int(len(x)))
    # Seven terms of the series have a relative error of 1.2·10⁻⁷ at ln 2 / 2; rounding the sum and n · ln 2: 2⁻²³ each.
    np.testing.assert_allclose(found[:-3], np.exp(x[:-3].astype(np.float64)), rtol=3.6e-7)
    assert np.isnan(found[-3])
    assert np.isposinf(found[-2])
    assert 0 <= found[-1] < 2e-38


EXPONENTIALS = """
#include <math.h>
#include <stdint.h>
#include <string.h>
enum { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, GROUP = 32, TILE = 16 };
typedef struct { int32_t kind, rows, columns; const void *numbers; const uint16_t *scales; } Matrix;
#include "native/numbers.h"
void exponentials(const float *x, float *y, int count) {
    for (int at = 0; at < count; at++) y[at] = exponential(x[at]);
}
"""

START = """
import torch, sys
from llucid.presets import PRESETS
from llucid.generation import Batch
from llucid.model import Model
from llucid.weights import initialise
config = PRESETS["nano"].config
print(float(Batch(Model(config, initialise(config), None)).read([1]).sum()))
"""

FORKS = """
import os, threading, warnings
from tests.native.test_step import CONFIG, build_step, one_at_a_time, random_ids, random_weights
warnings.simplefilter("ignore")  # Python warns of forking with threads
step, tokens, going = build_step(random_weights(CONFIG), CONFIG), random_ids(CONFIG, 20), True
def decode():
    while going:
        one_at_a_time(step, tokens)
threading.Thread(target=decode, daemon=True).start()
one_at_a_time(step, tokens)
for _ in range(5):
    child = os.fork()
    if not child:
        one_at_a_time(step, tokens)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("done" if status == 0 else status)
going = False
"""


@pytest.mark.slow
def test_several_processes_can_build_at_once(tmp_path: Path):
    environment = os.environ | {"LLUCID_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert len(set(answers)) == 1
    assert answers[0][1] == ""
    assert [file.suffix for file in tmp_path.iterdir()] == [".so"]


SANITIZED = """
import sys, torch
from tests.native.test_step import CONFIG, CONFIGS, FLAGS, PLAIN, QUANTIZED_FORMS, Config, all_at_once, build_step
from tests.native.test_step import one_at_a_time, poisoned_memory, quantized_weights, random_ids, random_weights
from llucid.weights import to
PLAIN_FORMS = (torch.float32, torch.bfloat16, torch.float16)
narrow = Config(**vars(CONFIG) | {"ffn_dim": 172, "vocab_size": 65})
cases = [(form, config) for config in (*CONFIGS.values(), CONFIG, narrow) for form in (*PLAIN_FORMS, "Q8_0", "Q4_0")]
kept = torch.float32
for form, config in (*cases, *((form, None) for form in QUANTIZED_FORMS)):
    if isinstance(form, str):
        weights, config = quantized_weights(form, config)
    else:
        weights, kept = to(random_weights(config), form), form
    for threads in (1, 3):
        torch.set_num_threads(threads)
        step = build_step(weights, config, (*FLAGS, *sys.argv[1:]))
        name = str(kept).removeprefix("torch.")
        one_at_a_time(step, random_ids(config, 12), poisoned_memory(config, 64, name))
        rows = torch.tensor(random_ids(config, 33)).view(11, 3).tolist()
        all_at_once(step, rows, poisoned_memory(config, 1024, name))
        for size in (1e-37, 1e-42, float("nan")):  # 127 divided by such activations is infinite
            blocks = (block._replace(attention_norm=block.attention_norm * size) for block in weights.blocks)
            odd = weights._replace(blocks=tuple(blocks))
            all_at_once(build_step(odd, config, (*FLAGS, *sys.argv[1:])), [[1, 2, 3]])
print("clean")
"""


@pytest.mark.slow
@pytest.mark.parametrize("plain", [[], ["-DPLAIN"]], ids=["native", "plain"])
def test_the_sanitizers_find_nothing(plain: list[str], tmp_path: Path):
    """AddressSanitizer and UndefinedBehaviorSanitizer."""
    where = subprocess.run([*compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(where.stdout.strip()).is_file():
        pytest.skip("this compiler has no AddressSanitizer that can be loaded into Python")
    flags = [*plain, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    environment = os.environ | {"LD_PRELOAD": where.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "clean\n", done.stderr[-3000:]
