"""The small model that several lessons look into: trained by the first that runs, and kept."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

import llucid
from llucid.files import cache_folder
from llucid.training.loop import train
from llucid.training.settings import ModelNumbers, Settings

SIZES = ModelNumbers(dim=96, layers=3, heads=4, kv_heads=2, ffn_dim=256, context=128)


def fables_model(steps: int = 300) -> llucid.Model:
    """A Llama trained on fables for so many steps: from the cache, or now (about 15 seconds)."""
    kept = cache_folder() / "lessons" / f"fables-{steps}"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as unfinished:
            out = Path(unfinished) / "run"
            settings = Settings(
                corpus=("fables",),
                tokenizer="bpe:1024",
                preset="nano",
                model=SIZES,
                steps=steps,
                batch=8,
                evaluations=1,
                out=str(out),
                device="cpu",
            )
            with torch.enable_grad():  # a lesson that only looks has switched it off
                train(settings, Console(quiet=True))
            if not kept.is_dir():  # another lesson may have been quicker
                out.rename(kept)
    return llucid.load(kept, device="cpu")
