"""x Wᵀ and its gradients, by `llucid.fast` and by PyTorch, alternating.

    python benchmarks/products.py [--rounds 7]

The shapes are those of a prompt of 512 tokens in stories110M and Llama 3.2 1B, and of training steps of the presets
nano and micro. Figures are billions of operations per second, medians of all rounds.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from llucid.bench import machine
from llucid.fast import linear

SHAPES = {
    "stories110M, a prompt": [(512, 768, 768), (512, 768, 2048), (512, 2048, 768)],
    "Llama 3.2 1B, a prompt": [(512, 2048, 2048), (512, 2048, 8192), (512, 8192, 2048)],
    "nanoGPT's size, a step": [(768, 128, 128), (768, 128, 340), (768, 340, 128)],
    "micro, a step": [(4096, 256, 256), (4096, 256, 688), (4096, 688, 256)],
}
"""(tokens, columns, rows)."""


def seconds(of: object, shape: tuple[int, int, int], backward: bool) -> float:
    """Median seconds of one product, or with `backward` of its two gradients."""
    tokens, columns, rows = shape
    x, w = torch.randn(tokens, columns, requires_grad=backward), torch.randn(rows, columns, requires_grad=backward)
    gradient, times = torch.randn(tokens, rows), []
    assert callable(of)
    for _ in range(max(5, int(2e9 / (tokens * columns * rows)))):
        begun = time.perf_counter()
        y = of(x, w)
        if backward:
            begun = time.perf_counter()
            torch.autograd.grad(y, (x, w), gradient)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    table = Table("job", "tokens, columns, rows", "PyTorch", "llucid", "ratio", "its gradients", "llucid", "ratio")
    for name, shapes in SHAPES.items():
        for shape in shapes:
            row = [name, " × ".join(map(str, shape))]
            for backward in (False, True):
                operations = 2 * shape[0] * shape[1] * shape[2] * (2 if backward else 1)
                pairs = [[seconds(of, shape, backward) for of in (F.linear, linear)] for _ in range(rounds)]
                theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratio = statistics.median(a / b for a, b in pairs)
                row += [f"{operations / theirs / 1e9:.0f}", f"{operations / ours / 1e9:.0f}", f"{ratio:.2f}"]
            table.add_row(*row)
    Console(width=120).print(machine(torch.device("cpu")), table)


if __name__ == "__main__":
    main()
