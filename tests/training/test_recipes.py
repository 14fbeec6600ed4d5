"""Default values of the settings."""

import torch

from llucid.presets import PRESETS
from llucid.training.recipes import FINE_TUNING, RECIPES, resolve, window
from llucid.training.settings import Settings
from llucid.weights import parameter_count


def test_given_settings_stay_and_missing_ones_are_chosen() -> None:
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


def test_small_is_not_larger_than_nanogpts_run() -> None:
    assert parameter_count(PRESETS["small"].config) <= 10_650_000


def test_windows_grow_and_tokens_per_step_stay() -> None:
    settings = Settings(batch=3, length_warmup=0.7)
    assert window(settings, 256, 0.0) == window(settings, 256, 0.69) == (12, 64)
    assert window(settings, 256, 0.7) == window(settings, 256, 1.0) == (3, 256)
    assert window(settings, 128, 0.0) == (3, 128)
    assert window(settings, 258, 0.0) == (3, 258)
    assert window(Settings(batch=3), 256, 0.0) == (3, 256)
