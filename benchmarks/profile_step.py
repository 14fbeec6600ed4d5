"""Where the time of a training step goes: `./dev bench profile`, or `python benchmarks/profile_step.py`.

Shares come from PyTorch's profiler, for steps of nanoGPT's CPU setting (12 rows of 64) and for the two kinds of steps
of `llucid train`. Milliseconds are measured without the profiler.
"""

import time
from dataclasses import replace
from typing import Literal

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from llucid.arrays.memory import keep_freed
from llucid.config import Config
from llucid.presets import PRESETS
from llucid.training.optimizer import make_optimizers
from llucid.training.recipes import resolve
from llucid.training.settings import Settings
from llucid.training.step import train_step
from llucid.weights import initialise, leaves

SHAPES = {"nanoGPT's setting, 12 × 64": (12, 64), "first, 16 × 64": (16, 64), "then, 4 × 256": (4, 256)}
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
KINDS = {
    "optimizers": ("Optimizer.step",),
    "attention": ("scaled_dot_product", "flash_attention", "bmm", "aten::_softmax"),
    "products": ("mkldnn", "mm", "linear", "Linear"),
    "copies": ("copy", "cat", "clone", "fill", "zero", "empty", "embedding"),
}
"""Substrings of the name of an operation or its caller, in order: the first match decides."""
REST = "norms, RoPE, SwiGLU, loss"


def kind_of(event: FunctionEvent) -> str:
    """The kind of an operation: by any caller for optimizers, else by its own name or its direct caller's."""
    names, above = [event.name], event.cpu_parent
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    for kind, parts in KINDS.items():
        if any(part in name for part in parts for name in (names if kind == "optimizers" else names[:2])):
            return kind
    return REST


def measured(
    config: Config, rows: int, seq: int, dtype: Literal["float32", "bfloat16"], steps: int = 30
) -> tuple[float, dict[str, float]]:
    """(milliseconds per step, the share of each kind of work)."""
    weights = initialise(config)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    settings = resolve(Settings(preset="micro", dtype=dtype), torch.device("cpu"))
    optimizers, precision = make_optimizers(weights, settings), getattr(torch, str(settings.dtype))
    tokens = torch.randint(config.vocab_size, (rows, seq + 1), generator=torch.Generator().manual_seed(0))

    def some(count: int) -> None:
        for _ in range(count):
            train_step(tokens[:, :-1], tokens[:, 1:], weights, config, optimizers, share=0.0, dtype=precision)

    some(5)
    begun = time.perf_counter()
    some(steps)
    each = (time.perf_counter() - begun) / steps
    with profile(activities=[ProfilerActivity.CPU]) as found:
        some(steps)
    spent = dict.fromkeys([*KINDS, REST], 0.0)
    for event in found.events() or ():
        spent[kind_of(event)] += event.self_cpu_time_total
    return 1000 * each, {kind: part / sum(spent.values()) for kind, part in spent.items()}


def step_profile() -> None:
    """Prints the table."""
    keep_freed()
    columns = ["batch", "", "ms per step", *KINDS, REST]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, (rows, seq) in SHAPES.items():
        for dtype in DTYPES:
            each, shares = measured(replace(PRESETS["micro"].config, vocab_size=65), rows, seq, dtype)
            cells = (f"{100 * share:.0f} %" for share in shares.values())
            print(f"| {name} | {dtype} | {each:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    step_profile()
