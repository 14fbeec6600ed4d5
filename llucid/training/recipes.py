"""Values for the settings that are left open, chosen by measurement on two CPU cores, except for `small`."""

import dataclasses
from typing import NamedTuple

import torch

from llucid.training.settings import Settings


class Recipe(NamedTuple):
    """Defaults for one size."""

    batch: int
    """Windows in a step."""
    learning_rate: float
    """Peak of AdamW."""
    muon_learning_rate: float
    """Peak of Muon."""
    minutes: float
    """How long to train if neither minutes nor steps are given."""
    length_warmup: float = 0.0
    """Share of the run on shorter windows where tokens are characters; a quarter of a window of words is too short."""


RECIPES = {
    "nano": Recipe(batch=12, learning_rate=8e-3, muon_learning_rate=0.02, minutes=0.3),
    "micro": Recipe(batch=4, learning_rate=8e-3, muon_learning_rate=0.02, minutes=1.4, length_warmup=0.7),
    "mini": Recipe(batch=8, learning_rate=6e-3, muon_learning_rate=0.02, minutes=20.0),
    "small": Recipe(batch=64, learning_rate=4e-3, muon_learning_rate=0.02, minutes=2.8),
}
FINE_TUNING = Recipe(batch=8, learning_rate=1e-3, muon_learning_rate=0.002, minutes=5.0)
"""For a trained model: a tenth of Muon's rate, and less of AdamW's, so that it does not forget."""
OTHER = Recipe(batch=32, learning_rate=1e-3, muon_learning_rate=0.01, minutes=60.0)
"""For sizes that have not been measured."""


def resolve(settings: Settings, device: torch.device) -> Settings:
    """`settings` with a value for everything that was left open."""
    preset = settings.preset or ("micro" if device.type == "cpu" else "small")
    recipe = FINE_TUNING if settings.base else RECIPES.get(preset, OTHER)
    corpus = settings.corpus or (None if settings.chat else ("shakespeare",))
    tokenizer = "bpe:1024" if settings.chat or corpus == ("fables",) else "characters"
    tokenizer = settings.tokenizer or (None if settings.base else tokenizer)
    length_warmup = recipe.length_warmup if tokenizer == "characters" else 0.0
    return dataclasses.replace(
        settings,
        corpus=corpus,
        preset=None if settings.base else preset,
        tokenizer=tokenizer,
        minutes=recipe.minutes if settings.steps is None and settings.minutes is None else settings.minutes,
        backend=settings.backend or "torch",
        device=str(device),
        dtype=settings.dtype or ("bfloat16" if multiplies_bfloat16(device) else "float32"),
        batch=settings.batch or recipe.batch,
        optimizer=settings.optimizer or ("adamw" if settings.backend == "jax" else "muon"),
        learning_rate=settings.learning_rate or recipe.learning_rate,
        length_warmup=length_warmup if settings.length_warmup is None else settings.length_warmup,
        muon_learning_rate=settings.muon_learning_rate or recipe.muon_learning_rate,
    )


def window(settings: Settings, context: int, done: float) -> tuple[int, int]:
    """How many windows a step has, and of how many tokens, when the share `done` of the run is over.

    Shorter windows cost less attention, and what is learned on them carries over to long ones: sequence length warm-up
    (Li et al. 2022, "The Stability-Efficiency Dilemma"). The number of tokens in a step stays the same.
    """
    shorter = 4 if done < (settings.length_warmup or 0) and context % 4 == 0 and context >= 256 else 1
    return int(settings.batch or 1) * shorter, context // shorter


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether this device has instructions for products of bfloat16 matrices, so that bfloat16 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False
