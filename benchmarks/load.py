"""Time and memory of opening a large checkpoint in each format, compared with transformers."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LAYERS = 44
"""With 44 layers, matrices of TinyLlama's sizes have 2.07 billion numbers: 4.1 GB in bfloat16."""

CHILD = """
import gc, json, os, sys, time
import torch
loader, path = sys.argv[1:]
if loader == "transformers":
    from transformers import LlamaForCausalLM
    load = lambda: LlamaForCausalLM.from_pretrained(path, dtype="auto").state_dict().values()
else:
    from llucid.checkpoints import gguf, huggingface, llama2c, meta, load as opened
    from llucid.tokenizers import characters, gguf_vocabulary
    from llucid.weights import leaves
    load = lambda: leaves(opened(path, device="cpu").weights)
gc.collect()  # garbage of the imports is not counted
begun = time.perf_counter()
arrays = load()
loaded = time.perf_counter() - begun
for array in arrays:
    array.view(-1)[:: 4096 // array.itemsize].sum()  # reads one number of each page of memory
read = time.perf_counter() - begun
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak, anonymous = (int(status[key].split()[0]) / 1e6 for key in ("VmHWM", "RssAnon"))
size = sum(array.nbytes for array in {array.data_ptr(): array for array in arrays}.values()) / 1e9
print(json.dumps([loaded, read, peak, anonymous, size]))
"""


def fresh(loader: str, path: Path) -> list[float]:
    """Runs CHILD in a new process and returns its measurements."""
    done = subprocess.run([sys.executable, "-c", CHILD, loader, str(path)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def write_random(folder: Path) -> None:
    """Writes a Hugging Face folder of random bfloat16 weights; the same random block repeats."""
    import torch

    from llucid.checkpoints import Model, save
    from llucid.config import Config
    from llucid.tokenizers.characters import Characters
    from llucid.weights import assemble

    sizes = dict(dim=2048, layers=LAYERS, heads=32, kv_heads=4, head_dim=64, ffn_dim=5632)
    config = Config(**sizes, vocab_size=32000, context=2048)
    noise = (torch.randn(32000 * 2048, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    weights = assemble(config, lambda path, shape: noise[: torch.Size(shape).numel()].view(shape))
    weights = weights._replace(output=weights.embedding.flip(0))
    save(Model(config, weights, Characters("abc")), folder)


def in_shards(folder: Path, out: Path) -> None:
    """Splits Meta's folder of one shard into two model-parallel shards."""
    import torch

    out.mkdir()
    (out / "params.json").write_text((folder / "params.json").read_text())
    for file in folder.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    state = torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)
    for number in range(2):
        parts = {
            name: (
                tensor.chunk(2, 1 if name.endswith(("wo.weight", "w2.weight")) else 0)[number]
                if tensor.dim() == 2
                else tensor
            ).clone()
            for name, tensor in state.items()
        }
        torch.save(parts, out / f"consolidated.{number:02}.pth")


def row(name: str, loader: str, runs: list[list[float]]) -> None:
    """Prints one row of the table: medians."""
    loaded, read, peak, anonymous, size = (statistics.median(column) for column in zip(*runs, strict=True))
    print(
        f"| {name} | {loader} | {loaded:.2f} | {read:.2f} | {peak:.2f} | {peak / size:.2f} | {anonymous:.2f} |",
        flush=True,
    )


def load(options: argparse.Namespace, folder: Path) -> None:
    """Loading in the dtype of the file, with files in the system's cache, each time in a new process.

    The peak counts all resident memory of the process: Python, PyTorch, and mapped pages of files, which the system can
    reclaim. The last column is what it cannot reclaim, after every weight has been read once.
    """
    from llucid.checkpoints import convert

    rounds = min(5, options.rounds)
    write_random(folder / "hf")
    size = sum(file.stat().st_size for file in (folder / "hf").glob("*.safetensors")) / 1e9
    print(f"{size:.2f} GB of random bfloat16 weights; medians of {rounds}\n")
    print("| format | opened by | seconds | with every page read | peak, GB | peak / weights | anonymous memory, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    runs: dict[str, list[list[float]]] = {"llucid": [], "transformers": []}
    for _ in range(rounds):
        for loader, found in runs.items():
            found.append(fresh(loader, folder / "hf"))
    for loader, found in runs.items():
        row("Hugging Face", loader, found)
    spent = {}
    for name, out in (("meta", folder / "meta"), ("gguf", folder / "a.gguf")):
        begun = time.perf_counter()
        convert(folder / "hf", out, name)
        spent[name] = time.perf_counter() - begun
        row({"meta": "Meta", "gguf": "GGUF"}[name], "llucid", [fresh("llucid", out) for _ in range(rounds)])
    (folder / "a.gguf").unlink()
    in_shards(folder / "meta", folder / "shards")
    row("Meta, 2 shards", "llucid", [fresh("llucid", folder / "shards") for _ in range(rounds)])
    print("\nconverting: " + ", ".join(f"to {name} {seconds:.1f} s" for name, seconds in spent.items()))
