"""How fast this machine runs a Llama, compared with what the machine can do at most.

A job that reads `bytes` from memory and needs `operations` (multiplications and additions) takes at least

    seconds ≥ max(bytes / read bandwidth, operations / peak of matrix products)         (Williams et al. 2009, roofline)

Bandwidth and peak are measured beside each job, since those of a shared machine change from minute to minute.
"""

import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from llucid.cache import Memory
from llucid.checkpoints import Model, find, load, save, size_of
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.fast import linear
from llucid.generation import Batch, Request, Sampling, generator
from llucid.generation.reader import cache_dtype
from llucid.presets import PRESETS
from llucid.tokenizers.characters import Characters
from llucid.training.optimizer import make_optimizers
from llucid.training.recipes import resolve
from llucid.training.settings import Settings
from llucid.training.step import train_step
from llucid.weights import Weights, initialise, leaves, parameter_count, shapes, to, tree_map

PROMPT = 512
"""Tokens of a prompt."""
WRITTEN = 48
"""Largest number of tokens written after a short prompt."""
WARM = 4
"""The first of them, which are not timed."""


class Limits(NamedTuple):
    """What the machine can do."""

    read: float
    """Bytes per second read from memory."""
    products: float
    """Operations per second in products of large matrices, in the job's dtype; of integers, C can do more."""


class Row(NamedTuple):
    """One measured job."""

    name: str
    tokens: int
    seconds: float
    """Median."""
    bytes: int
    """The least that must be read from memory."""
    operations: int
    """Multiplications and additions."""
    limits: Limits

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def limit(self) -> float:
        """The least seconds that this machine needs."""
        return max(self.bytes / self.limits.read, self.operations / self.limits.products)

    @property
    def fraction(self) -> float:
        """Share of the machine's speed that was reached; 1 is all of it."""
        return self.limit / self.seconds

    def json(self) -> dict[str, Any]:
        figures = self._asdict() | {"limits": self.limits._asdict(), "tokens_per_second": self.rate}
        bound = "read" if self.bytes / self.limits.read == self.limit else "products"
        return figures | {"limit_seconds": self.limit, "limit_by": bound, "fraction_of_limit": self.fraction}


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(job: Callable[[], object], device: torch.device, budget: float = 2.0, least: int = 3) -> float:
    """The median time of a job in seconds: after one run to warm up, at least `least` runs, more if they fit."""
    times: list[float] = []
    for number in range(1000):
        synchronise(device)
        begun = time.perf_counter()
        job()
        synchronise(device)
        if number:
            times.append(time.perf_counter() - begun)
        if len(times) >= least and sum(times) > budget:
            break
    return statistics.median(times)


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The machine's read bandwidth (sums of 256 MB; on a GPU 2 GB) and peak in products of `dtype` (2048³; 8192³)."""
    count = 2**25 if device.type == "cpu" else 2**28
    numbers = torch.ones(count, dtype=torch.float64, device=device)
    size = 2048 if device.type == "cpu" else 8192
    a = torch.ones(size, size, dtype=dtype, device=device)
    read_seconds = seconds_of(numbers.sum, device, budget=0.15)
    return Limits(8 * count / read_seconds, 2 * size**3 / seconds_of(lambda: linear(a, a), device, budget=0.2))


def work(weights: Weights, config: Config, rows: int, new: int, before: int, scored: int) -> tuple[int, int]:
    """(bytes, operations) of a pass over `new` tokens per row, after `before` others; `scored` of them get logits.

    Bytes are those of all matrices, read once, and of keys and values; activations stay in the processor's caches.
    """
    embedding = 0 if weights.output is None else weights.embedding.nbytes
    cached = rows * (before + new) * Memory.bytes_per_slot(config, cache_dtype(weights))
    moved = sum(leaf.nbytes for leaf in leaves(weights)) - embedding + cached
    head = config.vocab_size * config.dim
    matrices = sum(math.prod(shape) for shape in shapes(config).values() if len(shape) == 2)
    inner = matrices - head * (1 if config.tied_embeddings else 2)
    seen = new * before + new * (new + 1) // 2
    attended = 2 * config.layers * config.heads * config.head_dim * seen
    return moved, 2 * rows * (new * inner + scored * head + attended)


def random_model(preset: str, dtype: torch.dtype) -> Model:
    """A model of a preset's size with random weights. Raises LlucidError for an unknown preset."""
    if preset not in PRESETS:
        raise LlucidError(f"preset={preset}: unknown; expected one of: {', '.join(PRESETS)}")
    config = PRESETS[preset].config
    return Model(config, to(initialise(config), dtype), Characters("ab"))


@contextmanager
def on_disk(path: str | None, preset: str, dtype: torch.dtype) -> Generator[Path]:
    """Yields the model's path, or a temporary folder with a random model."""
    if path is not None:
        yield find(path)
        return
    with tempfile.TemporaryDirectory(prefix="llucid-bench-") as folder:
        save(random_model(preset, dtype), Path(folder) / "model")
        yield Path(folder) / "model"


def opened(path: Path, device: torch.device, dtype: torch.dtype | None) -> Model:
    """The model as `generate` opens it: without `dtype`, quantised matrices stay quantised."""
    return load(path, device=device, dtype=dtype, quantize=None if dtype else "file")


def loading(path: Path, device: torch.device, dtype: torch.dtype | None) -> Row:
    """Opening the model and reading all numbers, since mapped files are read only when used."""

    def job() -> None:
        for leaf in leaves(opened(path, device, dtype).weights):
            if isinstance(leaf, torch.Tensor):  # quantised matrices are read when they are opened
                leaf.amax()

    seconds = seconds_of(job, device, budget=1.0, least=2)
    return Row("load", 0, seconds, size_of(path), 0, measure_limits(device, dtype or torch.float32))


def prefill(model: Model, device: torch.device) -> Row:
    """Reading a prompt as `generate` does: it fills the cache and computes only the last logits."""
    config, weights = model.config, model.weights
    count = min(PROMPT, config.context)
    ids = torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    limits = measure_limits(device, weights.dtype)
    seconds = seconds_of(lambda: Batch(model).read(ids), device)
    return Row(f"prefill, {count}", count, seconds, *work(weights, config, 1, count, 0, 1), limits)


def decoding(model: Model, device: torch.device, rows: int) -> Row:
    """Writing `rows` texts at once as `generate` does: the median time of a token.

    Raises LlucidError if the context has no room for them.
    """
    config, weights = model.config, model.weights
    short = min(32, config.context // 4)
    if short < 2:
        raise LlucidError(f"the model's context is {config.context}; measuring needs at least 8 tokens")
    limits = measure_limits(device, weights.dtype)
    prompts = torch.randint(config.vocab_size, (rows, short), generator=torch.Generator().manual_seed(0)).tolist()
    written = min(WRITTEN, config.context - short)
    batch, times = Batch(model), list[float]()
    for prompt in prompts:
        batch.add(Request(prompt, Sampling(temperature=0.0), generator(0), lambda token: False, written))
    while batch.busy:
        batch.step()
        times.append(time.perf_counter())
    taken = [after - before for before, after in pairwise(times)][WARM:]
    moved = work(weights, config, rows, 1, short + written // 2, 1)
    return Row(f"decode, {rows}", rows, statistics.median(taken), *moved, limits)


def training(config: Config, device: torch.device) -> Row:
    """One AdamW step on two windows, in the dtype that `llucid train` chooses here."""
    settings = resolve(Settings(optimizer="adamw", steps=1), device)
    weights = tree_map(lambda leaf: leaf.to(device).requires_grad_(), initialise(config))
    optimizers, dtype = make_optimizers(weights, settings), getattr(torch, str(settings.dtype))
    window = min(256, config.context)
    tokens = torch.randint(config.vocab_size, (2, window + 1), generator=torch.Generator().manual_seed(0)).to(device)

    def job() -> None:
        train_step(tokens[:, :-1], tokens[:, 1:], weights, config, optimizers, dtype=dtype)

    limits = measure_limits(device, dtype)
    seconds = seconds_of(job, device, budget=1.0)
    forward = work(weights, config, 2, window, 0, window)[1]
    # The backward pass has two products for each forward one. AdamW reads four arrays and writes three.
    moved = 7 * sum(leaf.nbytes for leaf in leaves(weights))
    return Row(f"train, {2 * window}", 2 * window, seconds, moved, 3 * forward, limits)


def measure(
    path: str | None, preset: str, device: torch.device, dtype: torch.dtype | None, report: Callable[[str], None]
) -> Iterator[Row]:
    """Yields a row per job, after passing its name to `report`. Training is left out if there is no memory for it.

    Raises LlucidError for an unknown model or preset.
    """
    report("making a random model" if path is None else "loading")
    with on_disk(path, preset, dtype or torch.float32) as folder:
        model = opened(folder, device, dtype)
        yield loading(folder, device, dtype)
        report("prefill")
        yield prefill(model, device)
        for rows in (1, 8):
            report(f"decode, {rows}")
            yield decoding(model, device, rows)
    config = model.config
    del model
    if 16 * parameter_count(config) < free_memory(device) / 2:  # weights, gradients, AdamW's two, in float32
        report("train")
        yield training(config, device)


def free_memory(device: torch.device) -> float:
    """Free bytes of the device's memory; infinity if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return float("inf")
    return float(os.sysconf(names[0])) * os.sysconf(names[1])


def machine(device: torch.device) -> str:
    """Processor and PyTorch, on one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(rows: list[Row]) -> Table:
    """A table of the rows: what was reached, and its share of what the machine can do."""
    drawn = Table("tokens", "seconds", "tokens/s", "reached", "limit", "of the limit", box=box.SIMPLE)
    for row in rows:
        by_memory = row.json()["limit_by"] == "read"
        done, most = (row.bytes, row.limits.read) if by_memory else (row.operations, row.limits.products)
        unit = "GB/s" if by_memory else "GFLOP/s"
        rate = f"{row.rate:,.1f}" if row.tokens else ""
        bar = "█" * round(10 * min(row.fraction, 1)) or "▏"
        reached = f"{done / row.seconds / 1e9:,.1f} {unit}"
        drawn.add_row(row.name, f"{row.seconds:.4f}", rate, reached, f"{most / 1e9:,.1f}", f"{row.fraction:.2f} {bar}")
    if any(row.fraction > 1.05 for row in rows):
        drawn.caption = (
            "above 1: the weights fit into the cache, they are quantised and multiplied as integers, or the machine "
            "was busy while its limit was measured"
        )
    return drawn
