"""Decoding compared with llama.cpp: tokens per second on the same GGUF files, alternating, with the memory bandwidth.

    OMP_NUM_THREADS=2 python benchmarks/decode_c.py --shape 110m 1b --kind float32 bfloat16 q8_0 q4_0 q4_k_m

compares with llama-cpp-python (`CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python --no-binary
llama-cpp-python`; --llama-cpp names the folder if it was installed with --target). Without it, llucid is measured
alone, in the forms that it writes itself. The tokenizers are in $LLUCID_DATA; weights are random, and kept in
--folder. Each round measures the bandwidth, llucid and llama.cpp (medians over the tokens); the table has the medians
over the rounds. `--prompts 32 512` times the reading of prompts of these lengths. `--process` times whole commands:
`llucid generate`, a C program that calls libllama to load the model, read the prompt and write the same number of
tokens greedily, and llama.cpp's llama-cli, if --cli names it.
"""

import argparse
import ctypes
import importlib
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llucid
from llucid.arrays import Quantized
from llucid.cache import PAGE, Memory
from llucid.checkpoints import Model, load, save
from llucid.generation import Batch
from llucid.generation.reader import Reader
from llucid.native.build import compiler
from llucid.native.step import decode_step
from llucid.presets import PRESETS
from llucid.tokenizers import load_tokenizer
from llucid.weights import assemble, leaves

Average = Callable[[list[float]], float]
GREEDY = ["--max-tokens", "200", "--temperature", "0", "--device", "cpu"]
SHAPES = {"110m": ("stories110M", "llama2-tokenizer.model"), "1b": ("llama-3.2-1b", "llama3-tokenizer.model")}
QUANTISED_BY_LLAMA_CPP = {"q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "iq4_xs": 30}
"""llama.cpp's number (llama_ftype) of each kind that it is asked to write."""
READ = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct { const uint64_t *from; size_t count; uint64_t sum; } Share;
static void *add(void *given) {
    Share *s = given;
    uint64_t sums[32] = {0};
    for (size_t at = 0; at + 32 <= s->count; at += 32)
        for (int i = 0; i < 32; i++) sums[i] += s->from[at + i];
    for (int i = 0; i < 32; i++) s->sum += sums[i];
    return NULL;
}
uint64_t read_all(const uint64_t *memory, size_t count, int threads) {
    pthread_t started[64];
    Share shares[64];
    for (int t = 0; t < threads; t++) {
        shares[t] = (Share){memory + count / threads * t, count / threads, 0};
        pthread_create(&started[t], NULL, add, &shares[t]);
    }
    uint64_t sum = 0;
    for (int t = 0; t < threads; t++) pthread_join(started[t], NULL), sum += shares[t].sum;
    return sum;
}
"""
RUN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "llama.h"
static void quiet(enum ggml_log_level level, const char *text, void *data) { (void)level, (void)text, (void)data; }
int main(int count, char **words) {
    if (count < 5) return 1;
    int wanted = atoi(words[3]), threads = atoi(words[4]);
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    struct llama_model *model = llama_model_load_from_file(words[1], llama_model_default_params());
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = 512, p.n_threads = p.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, p);
    llama_token tokens[512];
    int n = llama_tokenize(vocab, words[2], (int)strlen(words[2]), tokens, 512, 1, 1);
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    for (int made = 0; made < wanted; made++) {
        if (llama_decode(context, llama_batch_get_one(tokens, n))) return 2;
        tokens[0] = llama_sampler_sample(greedy, context, -1), n = 1;
        char piece[64];
        int length = llama_token_to_piece(vocab, tokens[0], piece, sizeof piece, 0, 1);
        if (length > 0) fwrite(piece, 1, (size_t)length, stdout), fflush(stdout);
    }
    return 0;
}
"""


@cache
def llama_cpp() -> Any:
    """llama.cpp's Python package, which writes no log; None if it is not installed."""
    if not importlib.util.find_spec("llama_cpp"):
        return None
    cpp: Any = importlib.import_module("llama_cpp")
    cpp.silent = cpp.llama_log_callback(lambda level, text, data: None)  # kept, since C calls it
    cpp.llama_log_set(cpp.silent, ctypes.c_void_p(0))
    cpp.llama_backend_init()
    return cpp


def built(source: str, out: Path, *more: str) -> Path:
    """Compiles C source to a library or a program."""
    (out.with_suffix(".c")).write_text(source)
    subprocess.run([*compiler(), "-O3", "-march=native", str(out.with_suffix(".c")), "-o", str(out), *more], check=True)
    return out


def made(folder: Path, shape: str, kind: str) -> Path:
    """A GGUF file of random weights, written if it does not exist; by llama.cpp in the forms that only it writes."""
    out = folder / f"{shape}-{kind}.gguf"
    if kind in QUANTISED_BY_LLAMA_CPP and not out.is_file():
        cpp = llama_cpp()
        parameters = cpp.llama_model_quantize_default_params()
        parameters.ftype = QUANTISED_BY_LLAMA_CPP[kind]
        parameters.nthread = torch.get_num_threads()
        source = made(folder, shape, "bfloat16")
        failed = cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
        assert not failed, f"llama.cpp could not write {out}"
    if not out.is_file():
        preset, tokenizer = SHAPES[shape]
        config = replace(PRESETS[preset].config, context=2048)
        if shape == "1b":
            config = replace(config, rope_scaling=None)
        generator = torch.Generator().manual_seed(0)

        def draw(path: str, size: tuple[int, ...]) -> torch.Tensor:
            if len(size) == 1:
                return torch.ones(size)
            return torch.empty(size).uniform_(-0.05, 0.05, generator=generator)

        data = os.environ.get("LLUCID_DATA") or sys.exit(f"LLUCID_DATA is not set: it names the folder of {tokenizer}")
        loaded = load_tokenizer(Path(data) / tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        save(Model(config, assemble(config, draw), loaded), out, "gguf", dtype=kind)
    return out


def bytes_of(model: Model, slots: float) -> float:
    """Bytes read for one token: every matrix (one row of an untied embedding), and earlier keys and values."""
    weights, config = model.weights, model.config
    total = 0
    for leaf in leaves(weights if config.tied_embeddings else weights._replace(embedding=weights.norm)):
        parts = (leaf.numbers, leaf.scales) if isinstance(leaf, Quantized) else (leaf,)
        total += sum(part.numel() * part.element_size() for part in parts)
    return total + slots * Memory.bytes_per_slot(config, Reader(weights, config).pages.memory.dtype)


def ours(model: Model, tokens: int, texts: int, average: Average) -> Callable[[], float]:
    """Seconds per step, which reads a token of each text: `average` of `tokens` steps, from an empty cache."""
    step = decode_step(model.weights, model.config)
    assert step is not None, "llama.c could not be built"

    def once() -> float:
        dtype, count = Reader(model.weights, model.config).pages.memory.dtype, -(-tokens // PAGE)
        memory, seconds = Memory(model.config, texts * count * PAGE, dtype), list[float]()
        pages = np.arange(texts * count, dtype=np.int32).reshape(texts, count)
        for at in range(tokens):
            begun = time.perf_counter()
            step([([at + 10], at, own) for own in pages], memory, range(texts))
            seconds.append(time.perf_counter() - begun)
        return average(seconds)

    return once


def opened(path: Path, threads: int, texts: int = 1) -> Callable[[list[int], int], float]:
    """A function that times llama.cpp reading the same tokens in each text, up to the scores after the last.

    Without llama.cpp it gives NaN.
    """
    cpp = llama_cpp()
    if cpp is None:
        return lambda tokens, position: math.nan
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    parameters = cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max = 2048 if texts == 1 else 256 * texts, texts
    parameters.n_threads = parameters.n_threads_batch = threads
    context, batch = cpp.llama_init_from_model(model, parameters), cpp.llama_batch_init(2048, 0, 1)

    def seconds_of(tokens: list[int], position: int) -> float:
        if position == 0:
            cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
        batch.n_tokens = 0
        for text in range(texts):
            for at, token in enumerate(tokens):
                number = batch.n_tokens
                batch.token[number], batch.pos[number], batch.seq_id[number][0] = token, position + at, text
                batch.n_seq_id[number], batch.logits[number] = 1, at + 1 == len(tokens)
                batch.n_tokens += 1
        begun = time.perf_counter()
        assert cpp.llama_decode(context, batch) == 0
        cpp.llama_get_logits(context)
        return time.perf_counter() - begun

    return seconds_of


def theirs(path: Path, tokens: int, texts: int, threads: int, average: Average) -> Callable[[], float]:
    """The same as `ours`, for llama.cpp."""
    seconds_of = opened(path, threads, texts)
    return lambda: average([seconds_of([at + 10], at) for at in range(tokens)])


def cell(value: float, digits: int) -> str:
    """A number in a table; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def prompts(options: argparse.Namespace, scratch: Path) -> None:
    """Times reading prompts up to the logits of the last token, alternating."""
    print("| shape | form | tokens | llucid, seconds | llama.cpp | ratio (of pairs) |\n|---|---|---|---|---|---|")
    for shape in options.shape:
        for kind in options.kind:
            path = made(options.folder, shape, kind)
            model, other = load(path, device="cpu", quantize="file"), opened(path, torch.get_num_threads())
            for count in options.prompts:
                ids, rows = list(range(10, 10 + count)), list[tuple[float, float]]()
                for _ in range(options.rounds + 1):
                    begun = time.perf_counter()
                    Batch(model).read(ids)
                    rows.append((time.perf_counter() - begun, other(ids, 0)))
                mine, their = (statistics.median(column) for column in zip(*rows[1:], strict=True))
                ratio = statistics.median(b / a for a, b in rows[1:])
                print(
                    f"| {shape} | {kind} | {count} | {cell(mine, 2)} | {cell(their, 2)} | {cell(ratio, 2)} |",
                    flush=True,
                )


@contextmanager
def busy(count: int) -> Generator[None]:
    """Inside, so many other processes compute without a pause."""
    others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def steps(options: argparse.Namespace, scratch: Path) -> None:
    """Times single decode steps, alternating."""
    threads = torch.get_num_threads()
    reader = ctypes.CDLL(str(built(READ, scratch / "read.so", "-shared", "-fPIC", "-pthread")))
    memory = torch.ones(2**26, dtype=torch.int64)  # 512 MB

    def bandwidth() -> float:
        best = 0.0
        for _ in range(3):
            begun = time.perf_counter()
            reader.read_all(ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(2**26), threads)
            best = max(best, 2**29 / (time.perf_counter() - begun))
        return best

    names = ["shape", "form", "texts", "busy", "llucid, tokens/s", "llama.cpp", "ratio (of pairs)", "memory, GB/s"]
    print(f"| {' | '.join([*names, 'llucid reads', 'llama.cpp'])} |\n|{'---|' * 10}", flush=True)
    for shape, kind in product(options.shape, options.kind):
        path = made(options.folder, shape, kind)
        model = load(path, device="cpu", quantize="file")
        tokens = options.tokens or (100 if shape == "110m" else 16)
        for texts, others in product(options.texts, options.busy):
            average = statistics.mean if others else statistics.median  # a token that has to wait counts
            mine, other = ours(model, tokens, texts, average), theirs(path, tokens, texts, threads, average)
            for warm in (mine, other):
                warm()
            rows: list[tuple[float, float, float]] = []
            for _ in range(options.rounds):
                row: list[float] = []
                for measure in (bandwidth, mine, other):
                    time.sleep(0.05)  # threads of the previous program may still be spinning
                    with busy(others):
                        row.append(measure())
                rows.append((row[0], row[1], row[2]))
            size = bytes_of(model, texts * tokens / 2)
            medians = [statistics.median(column) for column in zip(*rows, strict=True)]
            ratio = statistics.median(other / mine for _, mine, other in rows)
            shares = [statistics.median(size / row[at] / row[0] for row in rows) for at in (1, 2)]
            rates = cell(texts / medians[1], 1), cell(texts / medians[2], 1), cell(ratio, 2), cell(medians[0] / 1e9, 1)
            columns = [shape, kind, str(texts), str(others), *rates, *(cell(share, 2) for share in shares)]
            print(f"| {' | '.join(columns)} |", flush=True)


def processes(options: argparse.Namespace, scratch: Path) -> None:
    """Times whole commands, alternating: load, a short prompt, 200 tokens."""
    threads, site = torch.get_num_threads(), Path(importlib.import_module("llama_cpp").__file__ or "").parent
    include = next(p for p in (site.parent / "include", Path(sys.prefix) / "include") if (p / "llama.h").is_file())
    libraries = [f"-L{site / 'lib'}", f"-Wl,-rpath,{site / 'lib'}", "-lllama", "-lggml", "-lggml-base", "-lggml-cpu"]
    program = built(RUN, scratch / "run", f"-I{include}", *libraries)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, every start would compile llucid again
    prompt, names = "Once upon a time", ["`llucid generate`", "libllama", *(["`llama-cli`"] if options.cli else [])]
    columns = ["shape", "form", *(f"{name}, seconds" for name in names), "ratios (of pairs)"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for shape in options.shape:
        for kind in options.kind:
            path = str(made(options.folder, shape, kind))
            commands = [
                [sys.executable, "-m", "llucid", "generate", path, prompt, *GREEDY],
                [str(program), path, prompt, "200", str(threads)],
                [str(options.cli), "-m", path, "-p", prompt, *"-n 200 --temp 0 -no-cnv -t".split(), str(threads)],
            ][: len(names)]
            rows: list[list[float]] = []
            for _ in range(options.rounds):
                row: list[float] = []
                for command in commands:
                    begun = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
                    row.append(time.perf_counter() - begun)
                rows.append(row)
            medians = [statistics.median(column) for column in zip(*rows, strict=True)]
            ratios = [statistics.median(row[at] / row[0] for row in rows) for at in range(1, len(names))]
            cells = [*(f"{median:.2f}" for median in medians), ", ".join(f"{ratio:.2f}" for ratio in ratios)]
            print(f"| {shape} | {kind} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = ["float32", "bfloat16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--kind", nargs="+", choices=[*kinds, *QUANTISED_BY_LLAMA_CPP], default=kinds)
    parser.add_argument("--busy", nargs="+", type=int, default=[0], help="beside so many busy processes (default: 0)")
    parser.add_argument("--texts", nargs="+", type=int, default=[1], help="so many texts at once (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="tokens per round (default: 100 for 110m, 16 for 1b)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llucid-gguf")
    parser.add_argument("--llama-cpp", help="folder of the package llama_cpp, if Python does not find it")
    parser.add_argument("--prompts", nargs="+", type=int, help="time prompts of these lengths, at most 2,000")
    parser.add_argument("--process", action="store_true", help="time whole commands")
    parser.add_argument("--cli", type=Path, help="path of llama.cpp's llama-cli, to time it as well")
    parser.add_argument("--make", action="store_true", help="only make the files")
    options = parser.parse_args()
    if options.llama_cpp:
        sys.path.append(options.llama_cpp)
    if llama_cpp() is None:
        print("llama.cpp: not found (--llama-cpp PATH); llucid alone")
        options.kind = [kind for kind in options.kind if kind not in QUANTISED_BY_LLAMA_CPP]
    if options.make:
        for shape in options.shape:
            for kind in options.kind:
                made(options.folder, shape, kind)
        return
    print(f"llucid {Path(llucid.__file__ or '').parent}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as scratch:
        (processes if options.process else prompts if options.prompts else steps)(options, Path(scratch))


if __name__ == "__main__":
    main()
