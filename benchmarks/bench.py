"""The measurements of docs/. `./dev bench` runs all of them, in about two hours; `./dev bench learning decode` some.

Programs to compare with are measured where they are given: --llama-cpp, --llama2c, --nanogpt.

    learning     validation loss and time of the whole process on Tiny Shakespeare; also of nanoGPT
    fables       validation loss after three minutes, compared with the exact entropy of the corpus
    decode       time per token at position 1,000 compared with position 10
    speculation  tokens per second with and without --speculate, on texts with more and less repetition
    load         seconds and peak memory of opening a checkpoint of 4 GB, also with transformers; needs 15 GB of disk
    memory       peak resident memory of training on a text of 1 GB
    prompt       memory for reading a prompt of 4,096 tokens, besides weights and cache
    start        seconds of `import llucid`, `llucid --help`, the first token and the first answer
    profile      where the time of a training step goes
    quantised    validation loss of the default `llucid train` model in float32, int8 and int4
    spellings    milliseconds of functions, classes and JAX: forward, backward, decoding, eager and compiled
    storyteller  how often the packaged chat model is right
    products     matrix products and their gradients, compared with PyTorch's own
    positions    time per token where its keys and values are on adjacent and on scattered pages of the cache
    look         time and memory of a trace, compared with a forward pass
    native       llama.c: one text, beside busy processes, 8 and 24 texts, prompts, K-quants; also llama.cpp
    peers        prompts, decoding, eight texts, training steps; also transformers, llama.cpp, llama2.c, nanoGPT

Each prints a table, with the command that was timed; a failure does not end the others.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from load import load
from spellings import spellings

from llucid.bench import machine

ROOT = Path(__file__).resolve().parents[1]
LLUCID = [sys.executable, "-m", "llucid"]
NANOGPT = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
SAME = (
    "--steps 2000 --batch 12 --model.layers 4 --model.dim 128 --model.heads 4 --model.ffn-dim 340 --model.context 64 "
    "--model.tied-embeddings True"
).split()
WHOLE_SPLIT = """
import sys, numpy as np, torch
sys.path.insert(0, '.')
from model import GPT, GPTConfig
kept = torch.load('out-shakespeare-char/ckpt.pt', map_location='cpu')
model = GPT(GPTConfig(**kept['model_args'])); model.load_state_dict(kept['model']); model.eval()
data = torch.from_numpy(np.fromfile('data/shakespeare_char/val.bin', 'uint16').astype('int64'))
total = 0.0
with torch.no_grad():
    for at in range(0, len(data) - 1, 64):
        y = data[at + 1 : at + 65]
        total += model(data[None, at : at + len(y)], y[None])[1].item() * len(y)
print(total / (len(data) - 1), sum(p.numel() for p in model.parameters()))
"""


def timed(command: list[str], **options: object) -> tuple[float, str]:
    """Wall-clock seconds of the whole process, and its output."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begun, done.stdout


def trained(folder: Path, *arguments: str) -> tuple[float, float, str]:
    """Trains into a new folder; returns the last validation loss, the seconds of the whole process, and the command."""
    out = folder / f"run{len(list(folder.iterdir()))}"
    seconds, _ = timed([*LLUCID, "train", "--out", str(out), *arguments])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows[-1]["validation"], seconds, "llucid train " + " ".join(arguments)


def learning(options: argparse.Namespace, folder: Path) -> None:
    """nanoGPT's documented CPU run, the default `llucid train`, and llucid with nanoGPT's settings; once per seed."""
    print("| run | validation loss, whole split | seconds, whole process |\n|---|---|---|")
    for seed in range(options.seeds):
        if options.nanogpt:
            copy = folder / "nanogpt"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(options.nanogpt, copy)
            data = os.environ.get("LLUCID_DATA") or sys.exit(
                "LLUCID_DATA is not set: it names the folder of tinyshakespeare.txt"
            )
            shutil.copy(Path(data) / "tinyshakespeare.txt", copy / "data" / "shakespeare_char" / "input.txt")
            timed([sys.executable, "data/shakespeare_char/prepare.py"], cwd=copy)
            script = [sys.executable, "train.py", "config/train_shakespeare_char.py", *NANOGPT]
            seconds, said = timed(script, cwd=copy)
            own = re.findall(r"val loss (\d+\.\d+)", said)[-1]
            loss, parameters = timed([sys.executable, "-c", WHOLE_SPLIT], cwd=copy)[1].splitlines()[-1].split()
            print(f"| nanoGPT, {parameters} parameters (says {own}) | {float(loss):.4f} | {seconds:.1f} |", flush=True)
        for arguments in ([], SAME, [*SAME, "--optimizer", "adamw", "--learning-rate", "4e-3"]):
            loss, seconds, command = trained(folder, "--seed", str(seed), *arguments)
            print(f"| `{command}` | {loss:.4f} | {seconds:.1f} |", flush=True)


def fables(options: argparse.Namespace, folder: Path) -> None:
    """Validation loss after three minutes on fables, compared with their entropy."""
    from llucid.corpora.fables import entropy_per_character

    floor = entropy_per_character()
    print("| run | validation loss | entropy | difference | seconds, whole process |\n|---|---|---|---|---|")
    for seed in range(options.seeds):
        loss, seconds, command = trained(folder, "--seed", str(seed), "--corpus", "fables", "--minutes", "2.8")
        print(
            f"| `{command}` | {loss:.4f} | {floor:.4f} | {100 * (loss / floor - 1):.1f} % | {seconds:.1f} |", flush=True
        )


def decode(options: argparse.Namespace, folder: Path) -> None:
    """Median time per token near position 10 and near position 1,000, `mini` preset, alternating."""
    import torch

    from llucid.cache import empty_cache
    from llucid.llama import llama
    from llucid.presets import PRESETS
    from llucid.weights import initialise

    config = PRESETS["mini"].config
    weights, token = initialise(config), torch.zeros(1, 1, dtype=torch.long)
    seconds: dict[int, list[float]] = {10: [], 1000: []}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for position in seconds:
                cache = empty_cache(config, 1, 1100, weights)
                _, cache = llama(torch.zeros(1, position, dtype=torch.long), weights, config, cache)
                for _ in range(20):
                    begun = time.perf_counter()
                    _, cache = llama(token, weights, config, cache)
                    seconds[position].append(time.perf_counter() - begun)
    near, far = (statistics.median(times) for times in seconds.values())
    print("| position | milliseconds per token (mini, float32) |\n|---|---|")
    print(f"| 10 | {1000 * near:.2f} |\n| 1,000 | {1000 * far:.2f} |\n| ratio | {far / near:.2f} |")


def positions(options: argparse.Namespace, folder: Path) -> None:
    """Median milliseconds per token (stories110M, bfloat16) on adjacent and on scattered pages of the cache."""
    import numpy as np
    import torch

    from llucid.generation.pages import Part
    from llucid.generation.reader import Reader
    from llucid.presets import PRESETS
    from llucid.weights import initialise, to

    config = PRESETS["stories110M"].config
    reader = Reader(to(initialise(config), torch.bfloat16), config)
    print("| position | adjacent pages | scattered pages |\n|---|---|---|")
    for position in (10, 1000, 8000):
        sequence = reader.pages.open([])
        reader.pages.extend(sequence, position + 1)
        for array in (*reader.pages.memory.keys, *reader.pages.memory.values):
            array[:] = 0
        sequence.length = position
        orders = (sequence.numbers, np.random.default_rng(0).permutation(sequence.numbers))
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(5 * options.rounds):
            for order, times in zip(orders, seconds, strict=True):
                sequence.numbers = order
                begun = time.perf_counter()
                reader.read([Part(sequence, [5], 1, 1)])
                times.append(time.perf_counter() - begun)
        print(f"| {position:,} | " + " | ".join(f"{1000 * statistics.median(times):.2f}" for times in seconds) + " |")
        sequence.numbers = orders[0]
        sequence.length = 0
        reader.pages.close(sequence)


def speculation(options: argparse.Namespace, folder: Path) -> None:
    """Tokens per second with and without --speculate, alternating, on texts with more and less repetition.

    Random weights of the size of stories110M are forced to write given texts in Llama 2's tokens. Guesses, and their
    costs, are those of a model that writes these texts by itself. Prints medians of the ratios of the rounds.
    """
    import torch

    from llucid.generation import Batch, Draft, Request, Sampling, generator
    from llucid.model import Model
    from llucid.presets import PRESETS
    from llucid.tokenizers import load_tokenizer
    from llucid.weights import initialise, to

    data = Path(os.environ.get("LLUCID_DATA") or sys.exit("LLUCID_DATA is not set: see docs/data.md"))
    tokenizer, config = load_tokenizer(data / "llama2-tokenizer.model"), PRESETS["stories110M"].config
    source = Path(__file__).parent.parent.joinpath("llucid", "generation", "sampling.py").read_text()
    code, edited = tokenizer.encode(source), tokenizer.encode(source.replace("generator", "stream"))
    prose = tokenizer.encode((data / "tinyshakespeare.txt").read_text()[200_000:206_000])
    random = torch.randint(3, 32_000, (650,), generator=torch.Generator().manual_seed(1)).tolist()
    texts = {
        "a file of code, written out again with one name changed": (code[:600], edited[100:250]),
        "the rest of a file of code": (code[:500], code[500:650]),
        "Shakespeare": (prose[:500], prose[500:650]),
        "random tokens, where nothing repeats": (random[:500], random[500:]),
    }

    class Dictated(Sampling):
        """Writes a given text."""

        text: Iterator[int]

        def choose(self, logits: Any, generators: Any) -> Any:
            return torch.tensor([next(self.text)])

    def rate(prompt: list[int], text: list[int], dtype: str, speculate: bool) -> float:
        sampling, batch = Dictated(), Batch(Model(config, weights[dtype], None))
        object.__setattr__(sampling, "text", iter(text))
        draft = Draft() if speculate else None
        batch.add(Request(prompt, sampling, generator(0), lambda token: False, len(text), draft=draft))
        while batch.busy:
            batch.step()
        return batch.statistics.tokens_per_second

    weights = {"bfloat16": to(initialise(config), torch.bfloat16), "float32": initialise(config)}
    print("| text (stories110M) | bfloat16: tokens/s, ratio | float32 |\n|---|---|---|")
    for name, (prompt, text) in texts.items():
        cells = []
        for dtype in weights:
            pairs = [(rate(prompt, text, dtype, False), rate(prompt, text, dtype, True)) for _ in range(options.rounds)]
            plain, quick = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(quick / plain for plain, quick in pairs)
            cells.append(f"{plain:.1f} → {quick:.1f}, **{ratio:.2f}**")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Peak resident memory of training `mini` on a text of 1 GB for a few steps, tokenising included."""
    from llucid.corpora import fables

    text, file = fables.write(4_000_000), folder / "large.txt"
    with open(file, "w") as out:
        for _ in range(1_000_000_000 // len(text) + 1):
            out.write(text)
    cache = os.environ | {"LLUCID_CACHE": str(folder / "cache")}
    arguments = ["--preset", "mini", "--steps", "6", "--evaluations", "1"]
    command = [*LLUCID, "train", "--corpus", str(file), "--out", str(folder / "large"), *arguments]
    seconds, _ = timed(command, env=cache)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print("| run | peak resident memory, GB | seconds |\n|---|---|---|")
    print(
        f"| `llucid train --corpus large.txt {' '.join(arguments)}` ({file.stat().st_size / 1e9:.2f} GB) "
        f"| {peak:.2f} | {seconds:.0f} |"
    )


def quantised(options: argparse.Namespace, folder: Path) -> None:
    """Nats a character on the whole validation split, every product by llama.c on weights of 32, 8 and 4 bits."""
    import numpy as np
    import torch

    from llucid import load
    from llucid.cache import PAGE, Memory
    from llucid.corpora import open_corpus
    from llucid.corpora.tokens import tokenise, validation_batches
    from llucid.native.step import decode_step
    from llucid.training.step import cross_entropy_sum
    from llucid.weights import quantize

    trained(folder, "--corpus", "shakespeare")
    model = load(next(folder.iterdir()), device="cpu")
    tokens = tokenise(open_corpus(["shakespeare"]), model.tokenizer, "validation")
    losses: list[float] = []
    print("| weights | validation loss | difference from float32 |\n|---|---|---|")
    for name, weights in (
        ("float32", model.weights),
        ("int8", quantize(model.weights, 8)),
        ("int4", quantize(model.weights, 4)),
    ):
        step, total, counted = decode_step(weights, model.config), 0.0, 0
        assert step is not None, "llama.c could not be built"
        for inputs, targets in validation_batches(tokens, model.config.context):
            rows, length = inputs.shape
            pages = np.arange(rows * -(-length // PAGE), dtype=np.int32).reshape(rows, -1)
            parts = [(row, 0, own) for row, own in zip(inputs.tolist(), pages, strict=True)]
            logits = step(parts, Memory(model.config, pages.size * PAGE, "float32"), range(rows * length))
            total += float(cross_entropy_sum(torch.from_numpy(logits).view(rows, length, -1), targets))
            counted += int((targets != -100).sum())
        losses.append(total / counted)
        print(f"| {name} | {losses[-1]:.4f} | {losses[-1] - losses[0]:+.4f} |", flush=True)


def prompt(options: argparse.Namespace, folder: Path) -> None:
    """Peak memory of reading 4,096 tokens, besides weights and cache; random bfloat16 weights of Llama 3.2 1B's size.

    On Linux, writing 5 to /proc/self/clear_refs resets the peak of resident memory.
    """
    import torch

    from llucid.arrays.memory import keep_freed
    from llucid.generation import Batch
    from llucid.model import Model
    from llucid.presets import PRESETS
    from llucid.weights import assemble, leaves

    def resident(kind: str) -> int:
        return int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

    keep_freed()  # as the command line does
    config, count = PRESETS["llama-3.2-1b"].config, 4096
    weights = assemble(config, lambda path, shape: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02))
    batch = Batch(Model(config, weights, None))
    batch.read([*range(1, 101)])  # what PyTorch prepares once
    memory = batch.pages.memory
    batch.pages.close(sequence := batch.pages.open([]))
    batch.pages.extend(sequence, count)
    for layer in (*memory.keys, *memory.values):
        layer[:] = 0  # so that every page of it is there
    batch.pages.close(sequence)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.perf_counter()
    batch.read([*range(1, count + 1)])
    seconds, more = time.perf_counter() - begun, resident("VmHWM") - before
    kept = [sum(leaf.nbytes for leaf in part) for part in (leaves(weights), (*memory.keys, *memory.values))]
    print("| weights, MB | cache, MB | most in addition, MB | seconds |\n|---|---|---|---|")
    print(f"| {kept[0] / 1e6:.0f} | {kept[1] / 1e6:.0f} | {more / 1e6:.0f} | {seconds:.1f} |")


def start(options: argparse.Namespace, folder: Path) -> None:
    """Median seconds of whole commands, with the storyteller as the model."""
    from llucid.chat import STORYTELLER

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, every start would compile llucid again
    print("| command | seconds |\n|---|---|")
    for name, command, said in (
        ("python -c pass", [sys.executable, "-c", "pass"], ""),
        ("python -c 'import llucid'", [sys.executable, "-c", "import llucid"], ""),
        ("llucid --help", [*LLUCID, "--help"], ""),
        (
            "llucid generate MODEL One --max-tokens 1",
            [*LLUCID, "generate", str(STORYTELLER), "One", "--max-tokens", "1"],
            "",
        ),
        ("echo Who are you? | llucid chat", [*LLUCID, "chat"], "Who are you?\n"),
    ):
        times = [timed(command, input=said)[0] for _ in range(options.rounds)]
        print(f"| `{name}` | {statistics.median(times):.3f} |")


def profile(options: argparse.Namespace, folder: Path) -> None:
    """The share of each kind of work in a training step."""
    from profile_step import step_profile

    step_profile()


def storyteller(options: argparse.Namespace, folder: Path) -> None:
    """Shares of right answers, and of tales that match the request."""
    from storyteller import STORYTELLER, measure

    measure(str(STORYTELLER))


def script(name: str, *arguments: str) -> None:
    """Runs another file of this folder."""
    command = [f"benchmarks/{name}.py", *arguments]
    print(f"python {' '.join(command)}\n", flush=True)
    if status := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f"benchmarks/{name}.py ended with status {status}")


def products(options: argparse.Namespace, folder: Path) -> None:
    """Matrix products by llucid.fast and by PyTorch."""
    script("products", "--rounds", str(options.rounds))


def look(options: argparse.Namespace, folder: Path) -> None:
    """What a trace costs."""
    script("look")


def native(options: argparse.Namespace, folder: Path) -> None:
    """llama.c, compared with llama.cpp if it is given."""
    given = ["--rounds", str(options.rounds), *(["--llama-cpp", options.llama_cpp] if options.llama_cpp else [])]
    script("decode_c", "--busy", "0", "1", "2", *given)
    script("decode_c", "--texts", "8", "24", *given)
    script("decode_c", "--prompts", "128", "512", "2000", *given)


def peers(options: argparse.Namespace, folder: Path) -> None:
    """llucid compared with other programs."""
    paths = {"--llama-cpp": options.llama_cpp, "--llama2c": options.llama2c, "--nanogpt": options.nanogpt}
    given = [word for name, path in paths.items() if path for word in (name, str(path))]
    script("peers", "--rounds", str(options.rounds), "--out", str(folder), *given)


def main() -> None:
    """Runs the named measurements."""
    functions = (
        start,
        decode,
        positions,
        speculation,
        load,
        spellings,
        memory,
        prompt,
        profile,
        storyteller,
        quantised,
        fables,
        learning,
        products,
        look,
        native,
        peers,
    )
    benchmarks = {function.__name__: function for function in functions}
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: everything)")
    parser.add_argument("--nanogpt", type=Path, help="folder of nanoGPT's source, to measure it as well")
    parser.add_argument("--llama2c", type=Path, help="folder of llama2.c's source, to measure it as well")
    parser.add_argument("--llama-cpp", metavar="PATH", help="folder that contains the package llama_cpp")
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each kind")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each short measurement")
    options = parser.parse_args()
    if unknown := set(options.names) - set(benchmarks):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(benchmarks)}")
    print(f"{machine(torch.device('cpu'))}")
    failed = list[str]()
    for name in options.names or benchmarks:
        print(f"\n## {name}, {time.strftime('%Y-%m-%d %H:%M')}\n", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                benchmarks[name](options, Path(folder))
            except SystemExit as error:  # hours of other measurements go on
                print(f"FAILED: {error}", flush=True)
                failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
