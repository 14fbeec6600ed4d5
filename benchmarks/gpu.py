"""Benchmarks for a GPU, in one script. Needs PyTorch 2.11 or newer.

    python benchmarks/gpu.py                             everything, about 15 minutes
    python benchmarks/gpu.py decode train --out FILE     some of it; also writes JSON to FILE
    python benchmarks/gpu.py --device cpu --tiny         the same with tiny sizes, to test the script

    decode      random weights of Llama 3.1 8B: bfloat16 and int8 at batch 1, bfloat16 at batch 64; compiled, one CUDA
                graph per token, no synchronisation until the end; compared with transformers
    train       the shape of Llama 3.2 1B in bfloat16, windows of 4,096 tokens, AdamW; compared with transformers
    learn       `llucid train --preset small`: validation loss and wall time

Decoding is reported as a fraction of the measured copy bandwidth (bytes of weights and filled cache slots per token),
training as a fraction of the measured peak of bfloat16 matrix products.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llucid.bench import machine, seconds_of, synchronise, work
from llucid.config import Config
from llucid.fast import attention_fused
from llucid.llama import (
    attention_written_out,
    rms_norm,
    rope_frequencies,
    rotate_real,
    rotations,
    swiglu,
    unembed,
    wide,
)
from llucid.presets import PRESETS
from llucid.training.optimizer import make_optimizers
from llucid.training.settings import Settings
from llucid.training.step import loss_sum, train_step
from llucid.weights import Weights, assemble, leaves, parameter_count, tree_map


class Task(NamedTuple):
    """Sizes and device of a benchmark."""

    device: torch.device
    decoded: Config
    trained: Config
    many: int
    prompt: int
    written: int
    windows: int
    learn: tuple[str, ...]


def task_of(device: torch.device, tiny: bool) -> Task:
    """The full sizes, or tiny ones."""
    if tiny:
        small = replace(PRESETS["nano"].config, kv_heads=1)
        return Task(device, small, small, 4, 8, 12, 2, ("--preset", "nano", "--corpus", "fables", "--steps", "4"))
    trained = replace(PRESETS["llama-3.2-1b"].config, context=4096)
    learn = ("--preset", "small", "--minutes", "2.8")
    return Task(device, PRESETS["llama-3.1-8b"].config, trained, 64, 128, 384, 4, learn)


def random_weights(config: Config, dtype: torch.dtype, device: torch.device) -> Weights:
    """Random weights, made on the device."""
    torch.manual_seed(0)

    def leaf(path: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.05)

    return assemble(config, leaf)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a large array."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, budget=0.5, least=5)


def product_peak(device: torch.device) -> float:
    """Multiplications and additions per second of large matrix products in bfloat16."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in "ab")
    return 2 * size**3 / seconds_of(lambda: a @ b, device, budget=1.0, least=5)


# ------------------------------------------------------------------------------------------ decode


class Int8(NamedTuple):
    """A matrix as 8-bit integers, with one scale per row."""

    numbers: Tensor
    scales: Tensor


def int8(leaf: Tensor) -> Tensor | Int8:
    """round(w / s) with s = max |w| / 127 for each row; gains are unchanged."""
    if leaf.ndim == 1:
        return leaf
    scales = wide(leaf).abs().amax(1, keepdim=True) / 127
    return Int8((wide(leaf) / scales).round().to(torch.int8), scales.to(leaf.dtype))


def plain(leaf: Tensor | Int8) -> Tensor:
    """The inverse of `int8`; fused into the product by the compiler, so the wide matrix is never stored."""
    return leaf.numbers.to(leaf.scales.dtype) * leaf.scales if isinstance(leaf, Int8) else leaf


def eight_bits(weights: Weights) -> Any:
    """The weights with each matrix but the embedding as Int8 (of which a token reads one row)."""
    return tree_map(int8, weights)._replace(embedding=weights.embedding)


def plainly(tree: Any) -> Any:
    """The tree with every Int8 dequantised."""
    if isinstance(tree, Int8) or not isinstance(tree, tuple):
        return plain(tree) if tree is not None else None
    branches = [plainly(branch) for branch in tree]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)


def next_token(
    attend: Callable[..., Tensor],
    config: Config,
    packed: Any,
    keys: list[Tensor],
    values: list[Tensor],
    token: Tensor,
    position: Tensor,
) -> Tensor:
    """Greedy `llama` for one token per row, at a position that is a tensor on the device: batch 1 -> batch 1.

    `keys` and `values` (batch kv_heads slots head_dim per layer) are written at `position`; later slots are masked, so
    every step has the same shapes and can be recorded as a graph.
    """
    head = (-1, config.head_dim)
    rotation = rotations(position.expand(len(token), 1), rope_frequencies(config, packed.norm))
    mask = (torch.arange(keys[0].shape[2], device=token.device) <= position)[None, None, None]
    x = F.embedding(token, packed.embedding)
    for layer, block in enumerate(packed.blocks):
        weights = plainly(block)
        normed = rms_norm(x, weights.attention_norm, config.norm_eps)
        q, k, v = (F.linear(normed, w).unflatten(-1, head).transpose(1, 2) for w in weights.attention[:3])
        keys[layer].index_copy_(2, position, rotate_real(k, rotation))
        values[layer].index_copy_(2, position, v)
        y = attend(rotate_real(q, rotation), keys[layer], values[layer], mask.expand(len(token), -1, -1, -1))
        x = x + F.linear(y.transpose(1, 2).flatten(-2), weights.attention.output)
        x = x + swiglu(rms_norm(x, weights.feed_forward_norm, config.norm_eps), weights.feed_forward)
    x = rms_norm(x, packed.norm, config.norm_eps)
    output = None if packed.output is None else plain(packed.output)
    return unembed(x[:, -1], packed._replace(output=output)).argmax(-1, keepdim=True)


def write(
    packed: Any, config: Config, prompts: Tensor, written: int, attend: Callable[..., Tensor], compiled: bool = True
) -> tuple[Tensor, float]:
    """(the ids after the prompts, seconds per token); the prompts are also read one token per step, by the same graph.

    Prompts are (batch seq); the ids (batch written). Nothing leaves the device before the end.
    """
    device, (rows, length) = prompts.device, prompts.shape
    slots, total = length + written, length + written - 1
    shape = (rows, config.kv_heads, slots, config.head_dim)
    keys, values = ([packed.norm.new_zeros(shape) for _ in range(config.layers)] for _ in "kv")
    step = partial(next_token, attend, config, packed, keys, values)
    if compiled:
        step = torch.compile(step, mode="max-autotune-no-cudagraphs" if device.type == "cuda" else None, fullgraph=True)
    line = torch.cat([prompts, prompts.new_zeros(rows, written)], 1)
    given = torch.arange(slots, device=device) < length
    position = torch.zeros(1, dtype=torch.long, device=device)

    def advance() -> None:
        """Reads the newest id and writes the next one, except where the prompt has one already."""
        new = step(line.index_select(1, position), position)
        position.add_(1)
        old = line.index_select(1, position)
        line.index_copy_(1, position, torch.where(given[position], old, new))

    with torch.inference_mode():
        for _ in range(3):  # compiles and tunes
            advance()
        position.zero_()
        go = advance
        if device.type == "cuda":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                advance()
            position.zero_()
            go = graph.replay
        for _ in range(length):
            go()
        synchronise(device)
        begun = time.perf_counter()
        for _ in range(total - length):
            go()
        synchronise(device)
        seconds = (time.perf_counter() - begun) / max(1, total - length)
    return line[:, length:], seconds


def decode(task: Task, bandwidth: float) -> list[dict[str, Any]]:
    """Rows of the table: what was decoded, tokens per second, share of the bandwidth."""
    torch._inductor.config.coordinate_descent_tuning = True  # makes products with one row plain, fusable sums
    config = replace(task.decoded, context=task.prompt + task.written)
    weights, rows = random_weights(config, torch.bfloat16, task.device), list[dict[str, Any]]()
    middle = task.prompt + task.written // 2
    for name, batch, pack in (
        ("bfloat16", 1, lambda w: w),
        ("int8", 1, eight_bits),
        ("bfloat16", task.many, lambda w: w),
    ):
        prompts = torch.randint(config.vocab_size, (batch, task.prompt), device=task.device)
        packed = pack(weights)
        cache = work(weights, config, batch, 1, middle, 1)[0] - work(weights, config, 0, 1, middle, 1)[0]
        moved = bytes_read(packed) + cache
        # Which attention is faster depends on the GPU and the PyTorch release.
        tried = {
            kind.__name__: write(packed, config, prompts, task.written, kind)[1]
            for kind in (attention_fused, attention_written_out)
        }
        kind, seconds = min(tried.items(), key=lambda found: found[1])
        result = {"what": f"decode {name}, batch {batch}", "tokens_per_second": batch / seconds, "attention": kind}
        rows.append(result | {"bytes_per_token": moved, "fraction_of_copy_bandwidth": moved / seconds / bandwidth})
        torch.compiler.reset()
    del packed
    return [*rows, *transformers_decode(task, config, weights)]


def bytes_read(packed: Any) -> int:
    """Bytes read per token: each matrix once; an embedding that is not the output matrix is not counted."""
    tree = packed if packed.output is None else packed._replace(embedding=None)
    return sum(leaf.nbytes for leaf in leaves(tree))


def transformers_of(config: Config, device: torch.device, dtype: torch.dtype) -> Any:
    """LlamaForCausalLM of the same size."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    their = LlamaConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context,
        tie_word_embeddings=config.tied_embeddings,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with device:
        return AutoModelForCausalLM.from_config(their, dtype=dtype)


def transformers_decode(task: Task, config: Config, weights: Weights) -> list[dict[str, Any]]:
    """transformers' `generate`: with defaults, and with its static cache, which it compiles for."""
    model, rows = transformers_of(config, task.device, torch.bfloat16).eval(), list[dict[str, Any]]()
    for batch, cache in ((1, None), (1, "static"), (task.many, None)):
        prompts = torch.randint(1, config.vocab_size, (batch, task.prompt), device=task.device)
        given = {"do_sample": False, "attention_mask": torch.ones_like(prompts), "cache_implementation": cache}

        def run(new: int, prompts: Tensor = prompts, given: dict[str, Any] = given) -> float:
            begun = time.perf_counter()
            model.generate(prompts, max_new_tokens=new, min_new_tokens=new, **given)
            synchronise(task.device)
            return time.perf_counter() - begun

        name = f"transformers generate bfloat16, batch {batch}" + (", static cache" if cache else "")
        try:
            run(task.written), run(2)
            long, short = (statistics.median(run(new) for _ in range(3)) for new in (task.written, 2))
            rows.append({"what": name, "tokens_per_second": batch * (task.written - 2) / (long - short)})
        except Exception as error:  # reported as failed
            rows.append({"what": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]})
    return rows


# ------------------------------------------------------------------------------------------ train


def train(task: Task, peak: float) -> list[dict[str, Any]]:
    """An AdamW step with float32 master weights and bfloat16 products; llucid compiled, transformers eager."""
    config, device = task.trained, task.device
    tokens = torch.randint(config.vocab_size, (task.windows, config.context + 1), device=device)
    inputs, targets, count = tokens[:, :-1], tokens[:, 1:], task.windows * config.context
    weights = tree_map(torch.Tensor.requires_grad_, random_weights(config, torch.float32, device))
    optimizers = make_optimizers(weights, Settings(optimizer="adamw", learning_rate=1e-4, steps=1))
    compiled = torch.compile(loss_sum)
    operations = 3 * work(weights, config, task.windows, config.context, 0, config.context)[1]

    def ours() -> None:
        train_step(inputs, targets, weights, config, optimizers, dtype=torch.bfloat16, loss_function=compiled)

    def row(name: str, seconds: float) -> dict[str, Any]:
        share = operations / seconds / peak
        result = {"what": name, "tokens_per_second": count / seconds, "fraction_of_matmul_peak": share}
        if device.type == "cuda":
            result["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        return result

    shape = f"{parameter_count(config) / 1e9:.2f} B parameters, {task.windows} × {config.context} tokens"
    rows = [row(f"train {shape}", seconds_of(ours, device, budget=10.0))]
    weights = optimizers = None  # frees their memory
    torch.compiler.reset()
    model = transformers_of(config, device, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def theirs() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(inputs, use_cache=False).logits
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return [*rows, row(f"transformers, autocast, {shape}", seconds_of(theirs, device, budget=10.0))]


def learn(task: Task, _: float) -> list[dict[str, Any]]:
    """`llucid train` as a user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*task.learn, "--device", str(task.device), "--out", f"{folder}/run"]
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "llucid", "train", *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation"] for row in rows if "validation" in row]
    result = {"what": "llucid train " + " ".join(task.learn), "validation_loss": min(losses), "seconds": seconds}
    return [result | {"steps": rows[-1]["step"]}]


def main() -> None:
    """Measures, prints each row, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", help="decode, train, learn (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which take seconds")
    parser.add_argument("--out", type=Path, help="file to write the rows to, as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU; test the script with --device cpu --tiny")
    task, bandwidth, peak = task_of(device, options.tiny), copy_bandwidth(device), product_peak(device)
    results: dict[str, Any] = {"machine": machine(device), "copy_bandwidth": bandwidth, "matmul_peak": peak, "rows": []}
    print(
        f"{results['machine']}: copies {bandwidth / 1e9:,.0f} GB/s, multiplies {peak / 1e12:,.2f} TFLOP/s", flush=True
    )
    benchmarks = {"decode": (decode, bandwidth), "train": (train, peak), "learn": (learn, 0.0)}
    for name in options.what or benchmarks:
        benchmark, limit = benchmarks[name]
        for row in benchmark(task, limit):
            results["rows"].append(row)
            numbers = (
                f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print("  ".join(numbers), flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
