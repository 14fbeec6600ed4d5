"""What a trace costs compared with a plain forward pass: seconds, and memory beyond the weights.

    python benchmarks/look.py [--size llama-3.2-1b] [--tokens 64] [--dtype bfloat16] [--repeat 3]

Weights are random. Plain passes and traces alternate, and the fastest of each counts. Memory is the process's peak
(VmHWM), set back before each, so it needs Linux.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from llucid.llama import llama
from llucid.look import trace
from llucid.model import Model
from llucid.presets import PRESETS
from llucid.weights import assemble


def memory(which: str) -> int:
    """Bytes: VmRSS now, VmHWM at the peak."""
    [kilobytes] = re.findall(rf"^{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and gigabytes that were needed beyond what was there before."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), perf_counter()
    made = work()
    seconds = perf_counter() - start
    del made
    return seconds, (memory("VmHWM") - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=PRESETS, default="llama-3.2-1b")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    config, dtype = PRESETS[options.size].config, getattr(torch, options.dtype)
    weights = assemble(config, lambda path, shape: torch.empty(shape, dtype=dtype).normal_(0, 0.02))
    model, ids = Model(config, weights, None), list(range(options.tokens))  # type: ignore[arg-type]
    works: dict[str, Callable[[], object]] = {
        "plain pass": lambda: llama(torch.tensor([ids]), weights, config),
        "trace": lambda: trace(model, ids),
        "trace and all attention": lambda: trace(model, ids).attention,
    }
    with torch.no_grad():
        figures = {name: [measured(work) for _ in range(options.repeat)] for name, work in works.items()}
    plain = min(seconds for seconds, _ in figures["plain pass"])
    print(f"{options.size}, {options.tokens} tokens, {options.dtype}, {torch.get_num_threads()} threads")
    for name, runs in figures.items():
        seconds, gigabytes = min(seconds for seconds, _ in runs), max(peak for _, peak in runs)
        print(f"{name:24} {seconds:6.2f} s  {seconds / plain:4.1f} passes  {gigabytes:5.2f} GB beyond the weights")


if __name__ == "__main__":
    main()
