"""What is chosen where nothing is said."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from llucid.config import PRESETS
from llucid.errors import LlucidError
from llucid.training.recipes import FINE_TUNING, RECIPES, resolve, window
from llucid.training.settings import ModelNumbers, Settings


def test_what_is_given_stays_and_what_is_not_is_chosen() -> None:
    given = Settings(preset="mini", batch=3, learning_rate=0.5, dtype="float32", steps=7)
    chosen = resolve(given, torch.device("cpu"))
    assert (chosen.preset, chosen.batch, chosen.learning_rate, chosen.dtype) == ("mini", 3, 0.5, "float32")
    assert (chosen.steps, chosen.minutes) == (7, None)
    assert chosen.muon_learning_rate == RECIPES["mini"].muon_learning_rate
    assert resolve(Settings(), torch.device("cpu")).preset == "micro"
    assert resolve(Settings(), torch.device("cpu")).minutes == RECIPES["micro"].minutes
    assert resolve(chosen, torch.device("cpu")) == chosen
    assert resolve(Settings(), torch.device("cpu")).tokenizer == "characters"
    assert resolve(Settings(corpus=("fables",)), torch.device("cpu")).tokenizer == "bpe:1024"
    assert resolve(Settings(), torch.device("cpu")).length_warmup == RECIPES["micro"].length_warmup > 0
    assert resolve(Settings(length_warmup=0.0), torch.device("cpu")).length_warmup == 0
    assert resolve(Settings(tokenizer="bpe:300"), torch.device("cpu")).length_warmup == 0
    assert resolve(Settings(muon_learning_rate=0.25), torch.device("cpu")).muon_learning_rate == 0.25
    elsewhere = resolve(Settings(), torch.device("mps"))
    assert (elsewhere.preset, elsewhere.device, elsewhere.dtype) == ("small", "mps", "float32")
    tuned = resolve(Settings(base="a model"), torch.device("cpu"))
    assert (tuned.preset, tuned.tokenizer, tuned.batch) == (None, None, FINE_TUNING.batch)
    assert (tuned.learning_rate, tuned.muon_learning_rate) == FINE_TUNING[1:3]


def test_numbers_of_the_model_are_put_into_the_preset() -> None:
    micro = PRESETS["micro"].config
    config = Settings(model=ModelNumbers(dim=96, heads=3)).config("micro", vocab_size=77)
    assert (config.dim, config.heads, config.kv_heads, config.head_dim, config.vocab_size) == (96, 3, 3, 32, 77)
    assert (config.layers, config.ffn_dim) == (micro.layers, micro.ffn_dim)
    grouped = Settings(model=ModelNumbers(kv_heads=2)).config("micro", 65)
    assert (grouped.heads, grouped.kv_heads, grouped.head_dim) == (micro.heads, 2, micro.head_dim)
    halved = Settings(model=ModelNumbers(heads=2 * micro.heads)).config("micro", 65)
    assert (halved.dim, halved.heads, halved.kv_heads) == (micro.dim, 2 * micro.heads, 2 * micro.heads)
    assert 2 * halved.head_dim == micro.dim // micro.heads
    wider = Settings(model=ModelNumbers(dim=2 * micro.dim)).config("micro", 65)
    base = Settings(base="a model")
    assert base.rebased(micro) == micro
    longer = replace(base, model=ModelNumbers(context=999, dropout=0.5)).rebased(micro)
    assert longer == replace(micro, context=999, dropout=0.5)
    assert (wider.heads, wider.kv_heads, wider.head_dim) == (micro.heads, micro.kv_heads, 2 * micro.dim // micro.heads)


WHOLE_SHARES = {"warmup": 0.0, "final": 1.0, "length_warmup": 1.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    "numbers",
    [
        *({"steps": 1}, {"batch": 2**31 - 1}, {"seed": 2**63 - 1}, {"seed": 0}, {"accumulate": 1, "evaluations": 1}),
        *({name: number} for name, number in WHOLE_SHARES.items()),
        *({"final": 0.0}, {"length_warmup": 0.0}, {"chat": "fables", "length_warmup": 0.0}),
        {"base": "a model", "model": ModelNumbers(context=9, dropout=0.5)},
    ],
)
def test_settings_at_their_limits_are_taken(numbers: dict[str, Any]) -> None:
    settings = Settings(**numbers)
    assert {name: getattr(settings, name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        *(
            (f"--{name.replace('_', '-')} {number}: must be more than 0, and finite", {name: number})
            for names, impossible in (
                (("steps", "stop_after", "batch"), (0, -1)),
                (("minutes", "learning_rate", "muon_learning_rate", "clip"), (0.0, -1.0, math.inf, math.nan)),
            )
            for name in names
            for number in impossible
        ),
        ("--batch 2147483648: no memory", {"batch": 2**31}),
        *((f"--seed {seed}: must be at least 0 and less than 2^63", {"seed": seed}) for seed in (-1, 2**63)),
        *(("--accumulate and --evaluations must be at least 1", {name: 0}) for name in ("accumulate", "evaluations")),
        ("--steps and --minutes both", {"steps": 1, "minutes": 1.0}),
        *(
            ("are shares between 0 and 1", {name: number})
            for name, most in (("warmup", 1.0), ("final", 1.001), ("length_warmup", 1.001))
            for number in (most, -0.001, math.nan)
        ),
        *((f"--weight-decay {number}: must", {"weight_decay": number}) for number in (-0.1, math.inf, math.nan)),
        ("--preset huge: unknown", {"preset": "huge"}),
        ("--resume goes on with the run in --out", {"resume": True}),
        ("--corpus and --chat both", {"chat": "fables", "corpus": ("fables",)}),
        ("--length-warmup: conversations", {"chat": "fables", "length_warmup": 0.5}),
        ("--preset: that of --base is taken", {"base": "a model", "preset": "nano"}),
        ("--tokenizer: that of --base is taken", {"base": "a model", "tokenizer": "characters"}),
        ("--model.head-dim: that of --base is taken", {"base": "a model", "model": ModelNumbers(head_dim=4)}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(message: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(LlucidError) as caught:
        Settings(**numbers)
    assert message in str(caught.value)


def test_small_is_no_larger_than_nanogpts_run() -> None:
    assert PRESETS["small"].config.parameters <= 10_650_000


def test_windows_grow_and_a_step_keeps_its_tokens() -> None:
    settings = Settings(batch=3, length_warmup=0.7)
    assert window(settings, 256, 0.0) == window(settings, 256, 0.69) == (12, 64)
    assert window(settings, 256, 0.7) == window(settings, 256, 1.0) == (3, 256)
    assert window(settings, 128, 0.0) == (3, 128)
    assert window(settings, 258, 0.0) == (3, 258)
    assert window(Settings(batch=3), 256, 0.0) == (3, 256)
