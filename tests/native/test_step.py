"""The decode step in C against the equations run on the same weights, and what happens where there is no C."""

import ctypes
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llucid.config import Config, RopeScaling
from llucid.errors import LlucidError
from llucid.generation.decode import Step, decode
from llucid.llama import NOWHERE, Cache, empty_cache, llama
from llucid.native import step as llama_c
from llucid.native.step import FLAGS, decode_step, library, step_of
from llucid.weights import Weights, dequantize, initialise, quantize, to, tree_map
from tests.configs import CONFIGS

ROOT = Path(__file__).parents[2]
PLAIN = (*FLAGS, "-DPLAIN")
"""The loops for any processor, on this one."""
NARROW = [(*PLAIN, "-mno-avx512f"), (*PLAIN, "-mno-avx")] if platform.machine().lower() in llama_c.X86 else []
"""The same on x86 processors whose registers hold 8 or 4 numbers; elsewhere they hold 4."""
WIDE = Config(
    dim=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_dim=96, vocab_size=53, context=1024,
    rope_theta=500_000.0, rope_scaling=RopeScaling(original_context=256), tied_embeddings=True,
)  # fmt: skip
"""Every row a multiple of 32 numbers, and a vocabulary that is no multiple of 16."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def drawn(config: Config) -> Weights:
    """Random weights with gains that differ, and scores that do."""
    gains = {1: lambda leaf: leaf * torch.linspace(0.5, 1.5, len(leaf)), 2: lambda leaf: leaf * 3}
    return tree_map(lambda leaf: gains[leaf.ndim](leaf), initialise(config))


def ids(config: Config, count: int) -> list[int]:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def by_step(step: llama_c.DecodeStep, tokens: list[int], cache: Cache) -> Tensor:
    """The scores after each token, one after the other."""
    scores: list[Tensor] = []
    for position, token in enumerate(tokens):
        logits, cache = step(torch.tensor([[token]]), torch.tensor([[position]]), cache)
        scores.append(logits[0])
    return torch.cat(scores)


def built(weights: Weights, config: Config, flags: tuple[str, ...] = FLAGS) -> llama_c.DecodeStep:
    return step_of(weights, config, library(flags))


def equation(weights: Weights, config: Config, tokens: list[int]) -> Tensor:
    """The equations in float32 over the whole sequence, on the very numbers that the weights stand for."""
    return llama(torch.tensor([tokens]), to(dequantize(weights), torch.float32), config)[0]


# --------------------------------------------------------------------------------------------- equal to the equations


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_each_form_of_plain_weights_is_the_equation_on_them(config: Config, dtype: torch.dtype, flags: tuple[str, ...]):
    weights, tokens = to(drawn(config), dtype), ids(config, 40)
    found = by_step(built(weights, config, flags), tokens, empty_cache(config, 1, 40, drawn(config)))
    expected = equation(weights, config, tokens)
    assert expected.std() > 0.05
    # Activations are float32 on both sides: only the order of sums differs.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
def test_it_stays_the_equation_over_500_positions(flags: tuple[str, ...]):
    weights, tokens = drawn(WIDE), ids(WIDE, 500)
    found = by_step(built(weights, WIDE, flags), tokens, empty_cache(WIDE, 1, 512, weights))
    torch.testing.assert_close(found, equation(weights, WIDE, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_cache_is_rounded_as_pytorch_rounds_it(dtype: torch.dtype, flags: tuple[str, ...]):
    config = CONFIGS["one for two"]
    weights, tokens = drawn(config), ids(config, 40)
    ours, theirs = (empty_cache(config, 1, 40, weights, dtype) for _ in "12")
    found = by_step(built(weights, config, flags), tokens, ours)
    expected: list[Tensor] = []
    cache = theirs
    for token in tokens:
        logits, cache = llama(torch.tensor([[token]]), weights, config, cache)
        expected.append(logits[0])
    # What is rounded differs in its last bit at times, and then to the next number: at most 2⁻⁷ of it away in bfloat16.
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        assert (mine == other).float().mean() > 0.99
        torch.testing.assert_close(mine, other, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-3, rtol=0)


def rounded(x: Tensor) -> Tensor:
    """What C makes of a vector that a quantised matrix is applied to: groups of 32 in 8 bits."""
    groups = x.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127 / largest)).round() * (largest / 127)).flatten(-2)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN, *NARROW], ids=lambda flags: " ".join(flags[len(FLAGS) :]) or "native")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_the_equation_on_them(bits: Any, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    weights, tokens = quantize(drawn(WIDE), bits), ids(WIDE, 60)
    found = by_step(built(weights, WIDE, flags), tokens, empty_cache(WIDE, 1, 60, drawn(WIDE)))
    exact = equation(weights, WIDE, tokens)
    # Rounding to 127 steps has an error of about 1/127/√12 of a group's largest number, which is 2 or 3 times as large
    # as most: 0.6 % of a product. What these weights make of it on the way through nine of them is a tenth at most.
    assert (found - exact).square().mean().sqrt() < 0.1 * exact.std()
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: linear(rounded(x), w))
    same = equation(weights, WIDE, tokens)
    # The same rounding in PyTorch: the same scores, but at positions where a last bit moved a number over a half.
    assert ((found - same).abs().amax(1) < 1e-5).float().mean() > 0.7
    assert (found - same).square().mean().sqrt() < 0.01 * exact.std()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_matrix_that_is_no_multiple_of_32_stays_and_is_read_beside_the_others(bits: Any):
    config = Config(**vars(WIDE) | {"ffn_dim": 172, "vocab_size": 65, "tied_embeddings": False})
    weights, tokens = quantize(drawn(config), bits), ids(config, 30)
    found = by_step(built(weights, config), tokens, empty_cache(config, 1, 30, drawn(config)))
    exact = equation(weights, config, tokens)
    assert (found - exact).square().mean().sqrt() < 0.1 * exact.std()


@pytest.mark.parametrize("bits", [None, 8])
def test_any_number_of_threads_computes_the_same_bits(bits: Any):
    weights = drawn(WIDE) if bits is None else quantize(drawn(WIDE), bits)
    step, tokens, found = built(weights, WIDE), ids(WIDE, 20), []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        found.append(by_step(step, tokens, empty_cache(WIDE, 1, 20, drawn(WIDE))))
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("flags", [FLAGS, PLAIN, *NARROW], ids=lambda flags: " ".join(flags[len(FLAGS) :]) or "native")
@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, torch.float16, 8, 4])
def test_tokens_read_together_come_out_as_if_alone_to_the_bit(form: Any, flags: tuple[str, ...]):
    weights = to(drawn(WIDE), form) if isinstance(form, torch.dtype) else quantize(drawn(WIDE), form)
    step, rows = built(weights, WIDE, flags), torch.tensor(ids(WIDE, 11 * 40)).view(11, 40)
    alone = torch.stack([by_step(step, row.tolist(), empty_cache(WIDE, 1, 40, drawn(WIDE))) for row in rows])
    positions = torch.arange(40).expand(11, 40)
    together, _ = step(rows, positions, empty_cache(WIDE, 11, 40, drawn(WIDE)))
    assert torch.equal(together, alone)
    for count in range(1, 12):  # every remainder of what is taken at once
        cache = empty_cache(WIDE, count, 7, drawn(WIDE))
        first, cache = step(rows[:count, :1], positions[:count, :1], cache)
        then, _ = step(rows[:count, 1:4], positions[:count, 1:4], cache)
        assert torch.equal(torch.cat([first, then], 1), alone[:count, :4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_more_numbers_than_the_first_cache_holds_are_taken_block_by_block(dtype: torch.dtype) -> None:
    """Rows in pairs and an odd one, whole blocks of columns and the rest of one: to the bit as one vector at a time."""
    config = Config(
        dim=1030, layers=1, heads=3, kv_heads=1, head_dim=6, ffn_dim=2100, vocab_size=53, context=16,
        tied_embeddings=True,
    )  # fmt: skip
    weights = to(drawn(config), dtype)
    step, tokens = built(weights, config), torch.tensor([ids(config, 11)])
    together, _ = step(tokens, torch.arange(11)[None], empty_cache(config, 1, 11, weights))
    assert torch.equal(together[0], by_step(step, tokens[0].tolist(), empty_cache(config, 1, 11, weights)))


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_no_token(side: str, flags: tuple[str, ...]):
    weights, rows = drawn(WIDE), [ids(WIDE, 9), ids(WIDE, 9)[:2], ids(WIDE, 9)[4:9]]
    step, cache = built(weights, WIDE, flags), empty_cache(WIDE, 3, 12, weights)
    for layer in (*cache.keys, *cache.values):
        layer.fill_(1e30)
    padded = [(row[:-1], range(len(row) - 1), 9 - len(row)) for row in rows]
    if side == "right":
        begun = torch.tensor([[*row, *[0] * more] for row, _, more in padded])
        places = torch.tensor([[*at, *[NOWHERE] * more] for _, at, more in padded])
    else:  # so that it sees nothing but itself in the first four slots
        begun = torch.tensor([[*[0] * more, *row] for row, _, more in padded])
        places = torch.tensor([[*[NOWHERE] * more, *at] for _, at, more in padded])
    for some, at in zip(begun.split(4, 1), places.split(4, 1), strict=True):
        _, cache = step(some, at, cache)
    last, _ = step(torch.tensor([row[-1:] for row in rows]), torch.tensor([[len(row) - 1] for row in rows]), cache)
    for logits, row in zip(last[:, 0], rows, strict=True):
        torch.testing.assert_close(logits, equation(weights, WIDE, row)[-1], atol=1e-4, rtol=0)


def test_threads_of_python_take_turns():
    step, tokens = built(drawn(WIDE), WIDE), ids(WIDE, 40)
    alone = by_step(step, tokens, empty_cache(WIDE, 1, 40, drawn(WIDE)))
    found: list[Tensor] = []
    run = lambda: found.append(by_step(step, tokens, empty_cache(WIDE, 1, 40, drawn(WIDE))))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(other, alone) for other in found)


def test_threads_that_wait_for_a_token_sleep():
    by_step(built(drawn(WIDE), WIDE), ids(WIDE, 3), empty_cache(WIDE, 1, 3, drawn(WIDE)))
    begun = time.process_time()  # of all threads
    time.sleep(0.4)
    assert time.process_time() - begun < 0.2


# --------------------------------------------------------------------------------------------- in the engine


def written(weights: Weights, config: Config, prompt: list[int], **options: Any) -> list[Step]:
    options = {"max_tokens": 30, "stops": lambda row, token: False} | options
    return list(decode(weights, config, [prompt], choose=lambda logits: logits.argmax(-1), **options))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 20])
def test_the_engine_writes_the_same_text_with_and_without_it(length: int, monkeypatch: pytest.MonkeyPatch):
    config = Config(**vars(WIDE) | {"context": 32, "rope_scaling": None})  # so that the window slides
    weights = tree_map(lambda leaf: leaf * 4 if leaf.ndim == 2 else leaf, drawn(config))
    with_c = written(weights, config, ids(config, length))
    monkeypatch.setenv("LLUCID_C", "0")
    without = written(weights, config, ids(config, length))
    assert [(step.tokens, step.slid, step.context.rows) for step in with_c] == [
        (step.tokens, step.slid, step.context.rows) for step in without
    ]
    assert len({step.tokens for step in with_c}) > 5


def test_a_context_goes_from_one_to_the_other(monkeypatch: pytest.MonkeyPatch):
    weights, prompt = drawn(WIDE), ids(WIDE, 12)
    whole = [step.tokens[0] for step in written(weights, WIDE, prompt)]
    *_, last = written(weights, WIDE, prompt, max_tokens=10)
    monkeypatch.setenv("LLUCID_C", "0")
    so_far = [*last.context.rows[0], *(token for token in last.tokens if token is not None)]
    *_, last = written(weights, WIDE, so_far, max_tokens=10, context=last.context)
    monkeypatch.delenv("LLUCID_C")
    so_far = [*last.context.rows[0], *(token for token in last.tokens if token is not None)]
    rest = [step.tokens[0] for step in written(weights, WIDE, so_far, max_tokens=10, context=last.context)]
    assert [*so_far[len(prompt) :], *rest] == whole


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
    from llucid.generation import reading

    model = llucid.load(data / "stories260K.bin", tokenizer=data / "tok512.bin")
    steps: list[llama_c.DecodeStep] = []

    def counted(weights: Weights, config: Config) -> llama_c.DecodeStep:
        steps.append(built(weights, config, flags))
        return steps[-1]

    monkeypatch.setattr(reading, "decode_step", counted)
    assert "".join(llucid.generate(model, max_tokens=200, temperature=0.0)) == STORY
    assert len(steps) == 1


# --------------------------------------------------------------------------------------------- where there is no C


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder with nothing in it, and nothing remembered."""
    monkeypatch.setenv("LLUCID_CACHE", str(folder))
    for function in (llama_c.library, llama_c.tell):
        function.cache_clear()


FULL = 'echo "ld: final link failed: No space left on device\ncollect2: error: ld returned 1 exit status" >&2; exit 1'
"""What a compiler does whose disk is full."""


@pytest.fixture
def forgetful() -> Iterator[None]:
    yield
    for function in (llama_c.library, llama_c.tell):
        function.cache_clear()


@pytest.mark.parametrize(
    ("path", "cc", "reason"),
    [
        ("/nowhere", "", "no C compiler was found"),
        (None, "false", "llama.c could not be built by false (status 1)"),
        (None, f"sh -c '{FULL}'", "llama.c could not be built by sh (ld: final link failed: No space left on device)"),
        (None, f"{sys.executable} -c 'import sys; sys.exit(\"error: no\")'", "(error: no)"),
    ],
)
def test_without_a_compiler_pytorch_serves_and_says_so_once(
    path: str | None,
    cc: str,
    reason: str,
    tmp_path: Path,
    forgetful: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    weights, prompt = drawn(WIDE), ids(WIDE, 5)
    expected = [step.tokens for step in written(weights, WIDE, prompt)]
    fresh(tmp_path, monkeypatch)
    monkeypatch.setenv("CC", cc)
    if path:
        monkeypatch.setenv("PATH", path)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert [step.tokens for step in written(weights, WIDE, prompt)] == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llucid: PyTorch serves, more slowly: ")
    assert reason in line
    assert list(tmp_path.iterdir()) == []
    assert len(written(quantize(weights, 8), WIDE, prompt)) == 30


def test_a_library_is_built_anew_for_other_sources_flags_or_compilers_and_only_then(
    tmp_path: Path, forgetful: None, monkeypatch: pytest.MonkeyPatch
):
    fresh(tmp_path / "cache", monkeypatch)
    sources, cc = tmp_path / "sources", 'while [ "$1" != -o ]; do shift; done; echo built >> "$2"'
    sources.mkdir()
    for name in llama_c.SOURCES:
        (sources / name).write_bytes((llama_c.HERE / name).read_bytes())
    monkeypatch.setattr(llama_c, "HERE", sources)
    monkeypatch.setenv("CC", f"sh -c '{cc}' once")
    made = [llama_c.built(), llama_c.built(("-O1",))]
    for name in llama_c.SOURCES:
        (sources / name).write_bytes((sources / name).read_bytes() + b"\n")
        made.append(llama_c.built())
    monkeypatch.setenv("CC", f"sh -c '{cc}' again")
    made.append(llama_c.built())
    assert len({*made}) == len(made) == 3 + len(llama_c.SOURCES)
    assert llama_c.built() == made[-1]
    assert {path.read_text() for path in made} == {"built\n"}


def test_who_watches_is_told_why_the_first_time_takes_longer(
    tmp_path: Path, forgetful: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fresh(tmp_path, monkeypatch)
    monkeypatch.setenv("CC", "true")  # which builds nothing, and has no fault
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(llama_c.Unavailable):
        library()
    assert capsys.readouterr().err == "llucid: true builds llama.c for this processor, once: a few seconds\n"


def test_what_c_has_no_form_of_is_left_to_pytorch_without_a_word(capsys: pytest.CaptureFixture[str]):
    assert decode_step(to(drawn(WIDE), torch.float64), WIDE) is None
    assert decode_step(tree_map(lambda leaf: leaf.to("meta"), drawn(WIDE)), WIDE) is None
    assert capsys.readouterr().err == ""


def test_sizes_are_checked_before_the_call():
    weights = drawn(WIDE)
    step = built(weights, WIDE)
    short = weights._replace(embedding=weights.embedding[:-1])
    with pytest.raises(ValueError, match=r"embedding has shape \[52, 64\]; the config says \[53, 64\]"):
        built(short, WIDE)
    for token in (-1, WIDE.vocab_size):
        with pytest.raises(ValueError, match="is not in the vocabulary of 53"):
            step(torch.tensor([[3, token]]), torch.tensor([[0, 1]]), empty_cache(WIDE, 1, 4, weights))
    with pytest.raises(ValueError, match="the cache has 2 slots and 3 tokens do not fit"):
        by_step(step, [1, 2, 3], empty_cache(WIDE, 1, 2, weights))
    cache = empty_cache(WIDE, 1, 4, weights)
    other = empty_cache(CONFIGS["one for two"], 1, 4, weights)
    wrong = [
        cache._replace(keys=other.keys),
        cache._replace(values=tuple(layer.mT.contiguous().mT for layer in cache.values)),
        cache._replace(keys=cache.keys[:1]),
        cache._replace(keys=tuple(layer.half() for layer in cache.keys)),
        cache._replace(keys=tuple(layer.double() for layer in cache.keys)),
        cache._replace(positions=torch.zeros(1, 8, dtype=torch.int64)[:, ::2]),
        cache._replace(positions=cache.positions.int()),
        empty_cache(WIDE, 2, 4, weights),
    ]
    one = torch.tensor([[1]])
    for broken in wrong:
        with pytest.raises(ValueError, match="the cache"):
            step(one, one * 0, broken)
    with pytest.raises(ValueError, match=r"\[1, 1\] tokens, \[1, 2\] positions"):
        step(one, torch.tensor([[0, 1]]), cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_chosen_beside_c_is_chosen_by_numpy(dtype: torch.dtype):
    """Else PyTorch's other threads would still spin when the next step needs their processors."""
    seen: list[np.ndarray] = []

    def choose(logits: np.ndarray) -> np.ndarray:
        seen.append(logits)
        return logits.argmax(-1)

    for _ in decode(to(drawn(WIDE), dtype), WIDE, [[1]], choose=choose, stops=lambda row, token: False, max_tokens=3):
        pass
    wide = np.float64 if dtype == torch.float64 else np.float32
    assert [(type(logits), logits.dtype) for logits in seen] == [(np.ndarray, wide)] * 3


def test_scores_that_are_not_numbers_stay_so():
    for bits in (None, 8, 4):
        for change in (math.nan, math.inf):
            weights = drawn(WIDE)
            weights = weights if bits is None else quantize(weights, bits)  # pyright: ignore[reportArgumentType]
            weights = weights._replace(norm=weights.norm * change)
            with pytest.raises(LlucidError, match="scores are not finite"):
                written(weights, WIDE, [1])


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("change", [math.nan, math.inf])
def test_one_scale_that_is_not_a_number_spoils_the_scores(change: float, bits: Any, flags: tuple[str, ...]):
    """Though what it scales is one number of a group, and the vectors are rounded group by group."""
    for matrix in range(7):
        weights = quantize(drawn(WIDE), bits)
        damaged: Any = (*weights.blocks[0].attention, *weights.blocks[0].feed_forward)[matrix]
        damaged.scales[0, 0, 5] = change
        cache = empty_cache(WIDE, 1, 3, drawn(WIDE))
        scores, _ = built(weights, WIDE, flags)(torch.tensor([[1, 2, 3]]), torch.arange(3)[None], cache)
        assert not scores.isfinite().all(), f"{matrix=}"


@pytest.mark.parametrize("flags", [FLAGS, PLAIN], ids=["native", "plain"])
def test_a_gate_that_is_shut_stays_so_however_large_its_numbers(flags: tuple[str, ...]):
    weights = drawn(WIDE)
    weights.embedding.abs_()
    for block in weights.blocks:
        block.feed_forward.gate.fill_(-1e22)  # silu is −10²²/(1 + e^10²²): nothing
        block.feed_forward.up.fill_(1e22)
        block.attention.output.zero_()
    found = by_step(built(weights, WIDE, flags), [1, 2], empty_cache(WIDE, 1, 2, weights))
    torch.testing.assert_close(found, equation(weights, WIDE, [1, 2]), atol=1e-4, rtol=0)


def test_its_exponential_is_as_near_as_float32_lets_it_be(tmp_path: Path):
    """In sums over attention and in SwiGLU, which a compiler that reorders what is in brackets would make coarser."""
    (tmp_path / "exponentials.c").write_text(EXPONENTIALS)
    tuned = "-march=native" if platform.machine().lower() in llama_c.X86 else "-mcpu=native"
    command = [*llama_c.compiler(), *FLAGS, tuned, "-I", str(ROOT / "llucid"), str(tmp_path / "exponentials.c")]
    subprocess.run([*command, "-o", str(tmp_path / "exponentials.so"), "-lm"], check=True)
    x = np.concatenate([np.linspace(-87, 88, 1_000_001), [np.nan, np.inf, -np.inf]]).astype(np.float32)
    found = np.empty_like(x)
    ctypes.CDLL(str(tmp_path / "exponentials.so")).exponentials(
        *(ctypes.c_void_p(array.ctypes.data) for array in (x, found)), ctypes.c_int(len(x))
    )
    # Seven terms of the series leave 1.2·10⁻⁷ of it at ln 2 / 2, and its sum and n · ln 2 are rounded: 2⁻²³ each.
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
from llucid.llama import empty_cache
from llucid.native.step import decode_step
from llucid.weights import initialise
config = PRESETS["nano"].config
weights = initialise(config)
step = decode_step(weights, config)
print(float(step(torch.tensor([[1]]), torch.tensor([[0]]), empty_cache(config, 1, 1, weights))[0].sum()))
"""


@pytest.mark.slow
def test_any_number_of_processes_may_start_at_once(tmp_path: Path):
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
from tests.test_llama_c import CONFIGS, FLAGS, WIDE, Config, drawn, ids, by_step
from llucid.llama import empty_cache
from llucid.native.step import library, step_of
from llucid.weights import quantize
from llucid.weights import to
loaded = library((*FLAGS, *sys.argv[1:]))
narrow = Config(**vars(WIDE) | {"ffn_dim": 172, "vocab_size": 65})
for config in (*CONFIGS.values(), WIDE, narrow):
    kept = torch.float32
    for dtype in (torch.float32, torch.bfloat16, torch.float16, 8, 4):
        weights = drawn(config)
        weights = to(weights, dtype) if isinstance(dtype, torch.dtype) else quantize(weights, dtype)
        kept = dtype if isinstance(dtype, torch.dtype) else kept
        for threads in (1, 3):
            torch.set_num_threads(threads)
            step = step_of(weights, config, loaded)
            by_step(step, ids(config, 12), empty_cache(config, 1, 12, drawn(config), kept))
            rows, places = torch.tensor(ids(config, 33)).view(11, 3), torch.arange(3).expand(11, 3)
            step(rows, places, empty_cache(config, 11, 3, drawn(config), kept))
print("clean")
"""


@pytest.mark.slow
@pytest.mark.parametrize("plain", [[], ["-DPLAIN"]], ids=["native", "plain"])
def test_no_sanitizer_finds_anything(plain: list[str], tmp_path: Path):
    """Reads and writes outside of arrays, and what C leaves undefined."""
    where = subprocess.run([*llama_c.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(where.stdout.strip()).is_file():
        pytest.skip("this compiler has no AddressSanitizer that can be loaded into Python")
    flags = [*plain, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    environment = os.environ | {"LD_PRELOAD": where.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "clean\n", done.stderr[-3000:]
