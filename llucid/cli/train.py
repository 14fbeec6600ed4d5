"""llucid train."""

import sys
from dataclasses import dataclass
from typing import ClassVar

from llucid.errors import PRINTABLE, LlucidError
from llucid.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a Llama from scratch, or fine-tune one. The result is a folder that llucid and transformers open."""

    TITLE: ClassVar = "other options"
    SECTIONS: ClassVar = {
        "data": ("corpus", "chat", "base", "tokenizer", "column"),
        "size and length": ("preset", "minutes", "steps"),
        "output": ("out", "resume", "evaluations", "snapshots", "tensorboard", "wandb", "stop_after"),
        "optimisation": (
            *("batch", "learning_rate", "muon_learning_rate", "optimizer", "weight_decay", "warmup", "length_warmup"),
            *("final", "clip", "patience", "seed"),
        ),
        "computing": ("device", "dtype", "backend", "compile", "accumulate"),
    }

    def run(self) -> None:
        from rich.console import Console

        from llucid.files import typed
        from llucid.tokenizers import load_tokenizer
        from llucid.training import train
        from llucid.training.settings import read_toml

        out = train(self, Console(soft_wrap=not sys.stdout.isatty()))
        print(f"the model is in {out}, its learning curve in {out / 'curve.png'}".translate(PRINTABLE))
        if self.out:  # who named the folder knows what to do with it
            return
        chat, run, text = read_toml(out / "train.toml").chat, typed(out), ' "the "'
        try:
            load_tokenizer(out).encode("the ")
        except LlucidError:  # a corpus without these characters
            text = ""
        print("try:")
        for command in (f"chat {run}" if chat else f"generate {run}", f"predict {run}{text}", f"info {run}"):
            print(f"    llucid {command}".translate(PRINTABLE))
