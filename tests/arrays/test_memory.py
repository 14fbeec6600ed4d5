"""Advice to the system about memory: tensors keep their contents, and the advice has an effect."""

import os
import re
import subprocess
import sys
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch

from llucid.arrays.memory import map_file, memory_size, release
from llucid.checkpoints import huggingface, load, meta, save
from llucid.checkpoints.pickles import read_pickle
from llucid.config import Config
from llucid.weights import leaves
from tests.checkpoints.models import model_of, same, write_shards


def test_released_memory_is_read_again(tmp_path: Path) -> None:
    """Tensors of several pages: single ones, of shards, and in Hugging Face's order."""
    torch.save({name: torch.arange(9000) for name in "abc"}, tmp_path / "file")
    a, b, c = (entry.read().tensor() for entry in read_pickle(tmp_path / "file").values())
    for one, two in ((a, b), (b, c)):
        assert (one.data_ptr() + one.nbytes) // PAGESIZE == two.data_ptr() // PAGESIZE, "neighbours must share a page"
    a += 1
    c += 1
    release(b.numpy())
    assert torch.equal(b, torch.arange(9000))
    assert torch.equal(a, b + 1)
    assert torch.equal(c, b + 1)
    model = model_of(Config(dim=128, layers=1, heads=4, kv_heads=2, head_dim=32, ffn_dim=256, vocab_size=48, context=9))
    write_shards(tmp_path / "shards", model, 2, 0)
    save(model, tmp_path / "hf")
    for folder in ("shards", "hf"):
        assert same(load(tmp_path / folder, device="cpu").weights, model.weights)


def test_memory_of_copied_tensors_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would count twice: query and key of a Hugging Face folder, and the matrices of shards."""
    given: list[int] = []
    for module in (huggingface, meta):
        monkeypatch.setattr(module, "release", lambda mapped: given.append(mapped.size))
    model = model_of(Config(dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=48, context=9))
    save(model, tmp_path / "hf")
    load(tmp_path / "hf", device="cpu")
    assert given == [64 * 64, 32 * 64] * 2
    given.clear()
    write_shards(tmp_path / "shards", model, 2, 0)
    load(tmp_path / "shards", device="cpu")
    assert sum(given) == sum(leaf.numel() for leaf in leaves(model.weights) if leaf.dim() == 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes the advice, and shows it in /proc/self/smaps")
def test_released_memory_is_free(tmp_path: Path) -> None:
    """The process holds no memory for a released tensor."""

    def area(tensor: torch.Tensor) -> dict[str, str]:
        middle = tensor.data_ptr() + tensor.nbytes // 2
        for reported in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
            begin, end = (int(place, 16) for place in reported.split(" ", 1)[0].split("-"))
            if begin <= middle < end:
                return dict(line.split(":", 1) for line in reported.splitlines()[1:])
        raise AssertionError("not in any area of memory")

    torch.save({"a": torch.ones(2**20)}, tmp_path / "file")
    mapped = read_pickle(tmp_path / "file")["a"].read().tensor()
    assert mapped.sum() == 2**20
    assert int(area(mapped)["Rss"].split()[0]) >= 4096  # kB
    release(mapped.numpy())
    assert int(area(mapped)["Rss"].split()[0]) <= 64
    assert mapped.sum() == 2**20


@pytest.mark.skipif(memory_size() is None or sys.platform != "linux", reason="Windows and macOS decide otherwise")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    """It can be written to, which does not change it."""
    size = 2 * (memory_size() or 0)
    with open(tmp_path / "file", "wb") as file:
        file.write(b"begin")
        file.truncate(size)
    mapped = map_file(tmp_path / "file")
    assert (bytes(mapped[:6]), mapped[size - 1], len(mapped)) == (b"begin\0", 0, size)
    mapped[0] = ord("B")
    assert (bytes(mapped[:5]), bytes(map_file(tmp_path / "file")[:5])) == (b"Begin", b"begin")


FAULTS = """
import resource, sys
from llucid.arrays.memory import keep_freed
import torch
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed()
def some():
    return [torch.ones(2**20) for _ in range(6)]  # 4 MB each
for _ in range(3):
    some()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    some()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library elsewhere is not glibc")
def test_freed_memory_is_kept_for_later_tensors():
    # Makes glibc ask the system each time, since its default depends on the free memory.
    asks = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}

    def faults(kept: str) -> int:
        command = [sys.executable, "-c", FAULTS, kept]
        return int(subprocess.run(command, env=asks, capture_output=True, text=True, check=True).stdout)

    assert 4 * faults("kept") < faults("not kept")
