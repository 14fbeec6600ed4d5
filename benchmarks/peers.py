"""llucid compared with transformers, llama.cpp, llama2.c and nanoGPT: the same sizes and machine, alternating.

    python benchmarks/peers.py                                     only with transformers
    python benchmarks/peers.py prefill --sizes stories110M --llama-cpp SITE --llama2c SOURCE --nanogpt SOURCE

    prefill    reading 512 tokens           decode    writing one text, the median token
    batch      writing eight texts          train     training steps of nanoGPT's documented CPU run

Every round runs each program once and measures the limits of the machine. The ratio to a peer is the median of the
ratios of the rounds. Weights are random, which does not change the speed. Results are added to docs/peers.json;
docs/peers.md and docs/peers.png are made from all results in it.
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llucid.arrays.memory import keep_freed
from llucid.bench import machine, measure_limits, work
from llucid.checkpoints import Model, save
from llucid.config import Config
from llucid.generation import Batch, Request, Sampling, generator
from llucid.presets import PRESETS
from llucid.tokenizers import load_tokenizer
from llucid.training.optimizer import make_optimizers
from llucid.training.settings import Settings
from llucid.training.step import train_step
from llucid.weights import Weights, assemble, initialise, tree_map

Job = Callable[[], float]
"""Runs once and returns tokens per second."""

PROMPT = 512
WRITTEN = 40
WARM = 8
"""The first tokens written, which are not counted."""
TITLE = """# Beside others, all figures

Made by `benchmarks/peers.py` (its first lines say how), which measures the programs in turn, on random weights.
Prefill is reading 512 tokens, decode writing one text, batch writing eight, train a training step. A figure is the
median of its rounds, a ratio the median of the ratios of the rounds; in bold, how many times as fast llucid is. The
limit is what the memory or the products of this machine allow, measured in each round.
"""
NANOGPT = SimpleNamespace(batch=12, block_size=64, n_layer=4, n_head=4, n_embd=128, vocab_size=65, dropout=0.0)
DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = {"float32": "F32", "bfloat16": "BF16"}


def random_weights(config: Config, dtype: torch.dtype) -> Weights:
    """Random weights, made quickly: the same million numbers repeat."""
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)

    def leaf(path: str, shape: tuple[int, ...]) -> torch.Tensor:
        size = torch.Size(shape).numel()
        return numbers.repeat(-(-size // len(numbers)))[:size].view(shape).contiguous()

    return assemble(config, leaf)


def ids_of(config: Config, rows: int, length: int) -> list[list[int]]:
    """Prompts of random ids."""
    return torch.randint(2, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()


def per_token(moments: Iterator[Any], rows: int = 1) -> float:
    """Tokens per second, from the median time between two tokens."""
    times = [time.perf_counter() for _ in moments]
    return rows / statistics.median(after - before for before, after in islice(pairwise(times), WARM, None))


# ------------------------------------------------------------------------------------------ programs


def llucid(weights: Weights, config: Config, what: str) -> Job:
    """llucid, as in `llucid generate`."""
    rows = 8 if what == "batch" else 1
    prompts, model = ids_of(config, rows, PROMPT if what == "prefill" else 16), Model(config, weights, None)

    def prefill() -> float:
        begun = time.perf_counter()
        Batch(model).read(prompts[0])
        return PROMPT / (time.perf_counter() - begun)

    def write() -> float:
        batch = Batch(model)
        for prompt in prompts:
            batch.add(Request(prompt, Sampling(temperature=0.0), generator(0), lambda token: False, WRITTEN))
        return per_token(iter(batch.step, []), rows)

    return prefill if what == "prefill" else write


def transformers(weights: Weights, config: Config, what: str) -> Job:
    """LlamaForCausalLM in eager mode, with its own cache, greedy."""
    from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

    their = LlamaConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context,
        tie_word_embeddings=config.tied_embeddings,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(their, dtype=weights.norm.dtype).eval()
    rotary = model.model.rotary_emb
    model = model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = type(rotary)(their)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(weights.embedding.flatten()[: parameter.numel()].view_as(parameter)) if (
                parameter.numel() <= weights.embedding.numel()
            ) else parameter.fill_(0.01)
    rows = 8 if what == "batch" else 1
    prompt = torch.tensor(ids_of(config, rows, PROMPT if what == "prefill" else 16))

    @torch.inference_mode()
    def prefill() -> float:
        begun = time.perf_counter()
        model(prompt, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        return PROMPT / (time.perf_counter() - begun)

    @torch.inference_mode()
    def write() -> float:
        def tokens() -> Iterator[None]:
            new, cache = prompt, DynamicCache()
            for _ in range(WRITTEN):
                new = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
                yield

        return per_token(tokens(), rows)

    return prefill if what == "prefill" else write


def llama_cpp(file: Path, config: Config, what: str) -> Job:
    """llama.cpp through llama-cpp-python, from the GGUF that llucid wrote."""
    their = importlib.import_module("llama_cpp")
    threads = torch.get_num_threads()
    model = their.Llama(
        str(file),
        n_ctx=1024,
        n_batch=PROMPT,
        n_ubatch=PROMPT,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    (prompt,) = ids_of(config, 1, PROMPT if what == "prefill" else 16)

    def prefill() -> float:
        model.reset()
        begun = time.perf_counter()
        model.eval(prompt)
        return PROMPT / (time.perf_counter() - begun)

    def write() -> float:
        model.reset()
        model.eval(prompt)
        return per_token(model.eval([number % config.vocab_size]) for number in range(5, 5 + WRITTEN))

    return prefill if what == "prefill" else write


def llama2c(source: Path, file: Path) -> Job:
    """llama2.c's run, compiled for this machine, from the .bin that llucid wrote; returns the speed that it prints."""
    program = file.with_name("run")
    subprocess.run(
        ["gcc", "-Ofast", "-march=native", "-fopenmp", source / "run.c", "-lm", "-o", program],
        check=True,
        capture_output=True,
    )
    command = [program, file, "-t", "0.8", "-s", "1", "-n", str(4 * WRITTEN), "-z", source / "tokenizer.bin"]

    def write() -> float:
        threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", env=threads, check=True).stderr
        return float(re.findall(r"achieved tok/s: ([\d.]+)", said)[0])

    return write


def steps_of(step: Callable[[], object], tokens: int) -> Job:
    """Tokens per second of training steps, the median of 20."""

    def job() -> float:
        times = [time.perf_counter()]
        for _ in range(20):
            step()
            times.append(time.perf_counter())
        return tokens / statistics.median(after - before for before, after in pairwise(times))

    return job


def nanogpt(source: Path) -> Job:
    """A step of nanoGPT's train.py in its documented CPU setting: model, optimizer, clipping."""
    sys.path.insert(0, str(source))
    their = importlib.import_module("model")
    sizes = {name: value for name, value in vars(NANOGPT).items() if name != "batch"}
    with contextlib.redirect_stdout(sys.stderr):
        model = their.GPT(their.GPTConfig(**sizes, bias=False))
        optimizer = model.configure_optimizers(1e-1, 1e-3, (0.9, 0.99), "cpu")
    x, y = torch.randint(65, (2, NANOGPT.batch, NANOGPT.block_size))

    def step() -> None:
        loss = model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return steps_of(step, x.numel())


def in_process(job: str, peaks: dict[str, list[float]]) -> Job:
    """A training job in a new process, so that settings do not mix; collects the peak memory in `peaks`."""

    def once() -> float:
        done = subprocess.run([sys.executable, __file__, "--job", job], capture_output=True, text=True, check=True)
        rate, peak = map(float, done.stdout.split())
        peaks.setdefault(job.partition(":")[0], []).append(peak)
        return rate

    return once


def run_job(job: str) -> None:
    """Prints the tokens per second of a training job, and the peak memory of the process in MB."""
    name, _, source = job.partition(":")
    if name == "llucid":
        keep_freed()
    measured = nanogpt(Path(source)) if name == "nanoGPT" else our_training("adamw")
    measured()
    print(measured(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def our_training(optimizer: str) -> Job:
    """llucid's training step with nanoGPT's layers, heads, width, number of parameters and tokens."""
    config = Config(
        dim=128,
        layers=4,
        heads=4,
        kv_heads=4,
        head_dim=32,
        ffn_dim=340,
        vocab_size=65,
        context=64,
        tied_embeddings=True,
    )
    weights = tree_map(torch.Tensor.requires_grad_, initialise(config))
    settings = Settings(optimizer=optimizer, learning_rate=1e-3, muon_learning_rate=0.02, steps=1)
    optimizers = make_optimizers(weights, settings)
    x, y = torch.randint(65, (2, NANOGPT.batch, NANOGPT.block_size))
    return steps_of(lambda: train_step(x, y, weights, config, optimizers), x.numel())


# ------------------------------------------------------------------------------------------ rounds


def alternate(jobs: dict[str, Job], limit: Job | None, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each, round by round; every other round runs in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in [*jobs, *(["limit"] if limit else [])]}
    for job in jobs.values():
        job()
    for number in range(rounds):
        if limit:
            found["limit"].append(limit())
        for name in list(jobs)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(jobs[name]())
    return found


def inference(what: str, size: str, dtype: str, options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """One comparison of reading or writing."""
    config = PRESETS[size].config
    weights = random_weights(config, getattr(torch, dtype))
    jobs = {"llucid": llucid(weights, config, what), "transformers": transformers(weights, config, what)}
    if what == "batch":
        jobs["llucid, one text"] = llucid(weights, config, "decode")
    elif options.llama_cpp:
        jobs["llama.cpp"] = llama_cpp(exported(weights, config, size, dtype, "gguf", folder), config, what)
    if what == "decode" and dtype == "float32" and options.llama2c and config.vocab_size == 32000:
        jobs["llama2.c"] = llama2c(options.llama2c, exported(weights, config, size, dtype, "llama2c", folder))

    def limit() -> float:
        limits = measure_limits(torch.device("cpu"), getattr(torch, dtype))
        rows, new, before = {"prefill": (1, PROMPT, 0), "decode": (1, 1, 36), "batch": (8, 1, 36)}[what]
        moved, operations = work(weights, config, rows, new, before, 1)
        return rows * new / max(moved / limits.read, operations / limits.products)

    return alternate(jobs, limit, options.rounds)


def exported(weights: Weights, config: Config, size: str, dtype: str, format: str, folder: Path) -> Path:
    """The model as a file in another program's format, written once."""
    file = folder / f"{size}-{dtype}.{format}"
    if not file.exists():
        kind = "llama3" if config.vocab_size > 100_000 else "llama2"
        data = os.environ.get("LLUCID_DATA") or sys.exit(
            f"LLUCID_DATA is not set: it names the folder of {kind}-tokenizer.model"
        )
        tokenizer = load_tokenizer(Path(data) / f"{kind}-tokenizer.model")
        save(Model(config, weights, tokenizer), file, format)
    return file


def main() -> None:
    """Measures, and writes the table and the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", help="prefill, decode, batch, train (default: all)")
    parser.add_argument("--sizes", nargs="*", default=["stories110M", "llama-3.2-1b"], help="presets")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-cpp", type=Path, help="folder that contains the package llama_cpp")
    parser.add_argument("--llama2c", type=Path, help="folder of llama2.c's source")
    parser.add_argument("--nanogpt", type=Path, help="folder of nanoGPT's source")
    parser.add_argument("--scratch", type=Path, help="folder to keep the model files in")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of peers.json, peers.md and peers.png")
    options = parser.parse_args()
    if options.job:
        run_job(options.job)
        return
    keep_freed()
    if options.llama_cpp:
        sys.path.append(str(options.llama_cpp))
    asked = options.what or ["prefill", "decode", "batch", "train"]
    with contextlib.ExitStack() as stack:
        folder = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for what in asked:
            if what == "train" and options.nanogpt:
                peaks: dict[str, list[float]] = {}
                jobs = {name: in_process(f"{name}:{options.nanogpt}", peaks) for name in ("llucid", "nanoGPT")}
                keep(options, "train, nanoGPT's CPU setting, F32", alternate(jobs, None, options.rounds))
                print({name: f"peak {max(found):.0f} MB" for name, found in peaks.items()})
            for size in options.sizes if what in ("prefill", "decode", "batch") else []:
                for dtype in options.dtypes:
                    keep(options, f"{what}, {size}, {NAMES[dtype]}", inference(what, size, dtype, options, folder))


# ------------------------------------------------------------------------------------------ results


def keep(options: argparse.Namespace, name: str, found: dict[str, list[float]]) -> None:
    """Adds one comparison to the results, and writes all files again."""
    file = options.out / "peers.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rounded = {who: [float(f"{rate:.4g}") for rate in rates] for who, rates in found.items()}
    known[name] = {"on": machine(torch.device("cpu")), "date": time.strftime("%Y-%m-%d"), "tokens_per_second": rounded}
    known = dict(sorted(known.items(), key=order_of))
    file.write_text(json.dumps(known, indent=1) + "\n")
    (options.out / "peers.md").write_text(table(known))
    chart(known, options.out / "peers.png")
    print("\n".join(table({name: known[name]}).splitlines()[-1:]), flush=True)


def order_of(comparison: tuple[str, Any]) -> tuple[int, int]:
    """The order of comparisons: by job, then by the order of the presets."""
    job, size = comparison[0].split(", ")[:2]
    return ["prefill", "decode", "batch", "train"].index(job), [*PRESETS, size].index(size)


def table(known: dict[str, Any]) -> str:
    """Markdown: medians of tokens per second, and medians of the ratios of llucid to the others."""
    lines = [
        TITLE,
        "| tokens/s | llucid | of the limit | others: tokens/s (llucid / other) | on |",
        "|---|---|---|---|---|",
    ]
    for name, comparison in known.items():
        rates = dict(comparison["tokens_per_second"])
        ours, limit = rates.pop("llucid"), rates.pop("limit", None)
        share = f"{ratio(ours, limit):.2f}" if limit else ""
        others = "; ".join(
            f"{who} {statistics.median(theirs):,.1f} (**{ratio(ours, theirs):.2f}**)" for who, theirs in rates.items()
        )
        when = f"{comparison['on']}, {comparison['date']}, {len(ours)} rounds"
        lines.append(f"| {name} | {statistics.median(ours):,.1f} | {share} | {others} | {when} |")
    return "\n".join(lines) + "\n"


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def chart(known: dict[str, Any], file: Path) -> None:
    """Bars of tokens per second, one panel per comparison, with the limit of the machine as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    columns = 4  # sizes and dtypes; a row for each job
    figure, axes = pyplot.subplots(-(-len(known) // columns), columns, figsize=(14, 2.2 * -(-len(known) // columns)))
    for panel, (name, comparison) in zip_longest(axes.flat, known.items(), fillvalue=(None, None)):
        if name is None:
            panel.axis("off")
            continue
        rates = {who: statistics.median(all_of) for who, all_of in comparison["tokens_per_second"].items()}
        limit = rates.pop("limit", None)
        bars = panel.barh(list(rates), list(rates.values()), color=["#c44e52", *["#b0b0b0"] * (len(rates) - 1)])
        labels = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" for rate in rates.values()]
        for label in panel.bar_label(bars, labels, padding=3, fontsize=8):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        if limit:
            panel.axvline(limit, color="black", linestyle="--", linewidth=1)
        panel.set_xlim(0, 1.25 * max([*rates.values(), limit or 0]))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        panel.invert_yaxis()
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("tokens per second; dashed: limit of this machine", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
