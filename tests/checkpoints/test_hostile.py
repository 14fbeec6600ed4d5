"""Damaged and hostile files: each opens correctly or raises LlucidError, in memory proportional to the file."""

import contextlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llucid.checkpoints import describe, format_of, save
from llucid.config import Config
from llucid.errors import LlucidError
from llucid.weights import leaves, shapes, tree_map
from tests.checkpoints.models import model_of, write_shards
from tests.checkpoints.test_llama2c import checkpoint

TINY = Config(dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=12, context=16)
WIDE = Config(**TINY.__dict__ | dict(dim=32, head_dim=16, ffn_dim=32, vocab_size=16))
TIED = Config(**TINY.__dict__ | dict(tied_embeddings=True))
SLACK = 64 * 2**20
"""The address space, in bytes, that opening may take beyond twice the file, for libraries. A hostile length field asks
for gigabytes."""


@contextlib.contextmanager
def limited(allowed: int) -> Iterator[None]:
    """Limits the growth of the process to `allowed` bytes of address space."""
    if sys.platform != "linux":
        yield
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(path: Path, size: int) -> bool:
    """Whether the model at `path` opens. Passes on every error except LlucidError, including MemoryError."""
    message, config, header, weights = "", TINY, {}, None
    with limited(2 * size + SLACK):
        try:
            name, format = format_of(path)
            config = format.read_config(path)
            describe(path)
            header = format.read_header(path)
            weights = tree_map(lambda leaf: leaf.read().tensor(), format.open_weights(path, config))
            for leaf in leaves(getattr(format, "open_quantized", format.open_weights)(path, config)):
                assert leaf.read().shape == leaf.shape
            if name == "gguf":  # the file also has the tokenizer
                assert format.read_tokenizer(path).vocab_size > 0
        except LlucidError as error:
            message = str(error)
    if weights is None:
        assert str(path.parent) in message
        return False
    assert weights.embedding.shape == shapes(config)["embedding"]
    assert len(header) >= sum(not path.endswith("_bias") for path in shapes(config))  # missing biases are zero
    return True


def written(folder: Path, kind: str) -> tuple[Path, Path]:
    """Writes a tiny model of this kind. Returns its path, and the file of it to damage."""
    out = folder / "model"
    name, _, detail = kind.partition(" ")
    if name == "checkpoint":
        torch.save(checkpoint(model_of(TIED)), out)
    elif kind == "meta shards":
        write_shards(out, model_of(TINY), 2, 1)
        return out, out / "consolidated.01.pth"
    elif kind == "huggingface bin":
        save(model_of(TINY), out)
        from safetensors.torch import load_file

        torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()
        return out, out / "pytorch_model.bin"
    elif name == "gguf":
        save(model_of(WIDE if detail == "Q8_0" else TINY), out, name, dtype=detail)
        return out, out
    else:
        save(model_of(TINY), out, name, version=int(detail) if name == "llama2c" else None)
    return out, out / detail if out.is_dir() else out


KINDS = {
    "huggingface model.safetensors": 8 + 1400,
    "huggingface config.json": 0,
    "huggingface bin": 0,
    "meta consolidated.00.pth": 0,
    "meta params.json": 0,
    "meta shards": 0,
    "llama2c 0": 28,
    "llama2c 1": 48,
    "llama2c 2": 48,
    "checkpoint pt": 0,
    "gguf float32": 1900,
    "gguf Q8_0": 1900,
}
"""The kinds of files, with the size of the header, where most of the damage is done; 0: the whole file."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_truncated_files(kind: str, tmp_path: Path) -> None:
    path, file = written(tmp_path, kind)
    original = file.read_bytes()
    assert attempt(path, len(original))
    cuts = {*range(40), *range(40, len(original), max(1, len(original) // 60)), len(original) - 1}
    for cut in sorted(cuts - {len(original)}):
        file.write_bytes(original[:cut])
        opened = attempt(path, len(original))
        assert not opened or file.suffix == ".json", f"{cut} of {len(original)} bytes opened as a complete file"


@pytest.mark.slow
def test_every_cut_and_every_byte(kind: str, tmp_path: Path) -> None:
    """Truncates at every byte, and inverts one bit or all bits of every byte of the header."""
    path, file = written(tmp_path, kind)
    original = file.read_bytes()
    for cut in range(len(original)):
        file.write_bytes(original[:cut])
        assert not attempt(path, len(original)) or file.suffix == ".json"
    for place in range(KINDS[kind] or min(len(original), 2000)):
        for bits in (0x01, 0x80, 0xFF):
            file.write_bytes(original[:place] + bytes([original[place] ^ bits]) + original[place + 1 :])
            attempt(path, len(original))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.data())
def test_flipped_bytes(kind: str, seed: st.DataObject, tmp_path: Path) -> None:
    path, file = tmp_path / "model", tmp_path / "original"
    if not file.exists():
        path, target = written(tmp_path, kind)
        file.write_bytes(target.read_bytes())
        (tmp_path / "target").write_text(str(target))
    target, original = Path((tmp_path / "target").read_text()), bytearray(file.read_bytes())
    header = KINDS[kind] or len(original)
    for _ in range(seed.draw(st.integers(1, 4))):
        original[seed.draw(st.integers(0, min(header, len(original)) - 1))] = seed.draw(st.integers(0, 255))
    target.write_bytes(original)
    attempt(path, len(original))


BIG = (2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def test_enormous_length_fields(kind: str, tmp_path: Path) -> None:
    """Replaces groups of 4 and 8 bytes in a header, and each value of a JSON file, by enormous numbers."""
    path, file = written(tmp_path, kind)
    original = file.read_bytes()
    if file.suffix == ".json":
        values = json.loads(original)
        for key in values:
            for value in (*BIG[1::4], -1, 1e300, float("inf"), "9" * 5000, [], {}, True, None):
                file.write_text(json.dumps(values | {key: value}))
                attempt(path, len(original))
        return
    header = min(KINDS[kind] or 100_000, len(original))
    places = np.linspace(0, header - 8, min(header - 7, 30)).astype(int)
    for place in places:
        for value in BIG[1::3]:
            length, packed = (4, struct.pack("<I", value)) if value < 2**32 else (8, struct.pack("<Q", value))
            file.write_bytes(original[:place] + packed + original[place + length :])
            attempt(path, len(original))


def test_safetensors_header_with_enormous_sizes(tmp_path: Path) -> None:
    path, file = written(tmp_path, "huggingface model.safetensors")
    original = file.read_bytes()
    size = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + size])
    for change in (
        {"shape": [2**31, 2**31]},
        {"shape": [2**40], "data_offsets": [0, 2**42]},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [-4, 0]},
    ):
        encoded = json.dumps(header | {"model.norm.weight": header["model.norm.weight"] | change}).encode()
        file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + original[8 + size :])
        assert not attempt(path, len(original))


def test_the_memory_limit_works() -> None:
    """Otherwise the tests above could not fail."""
    with limited(2 * 1000 + SLACK), pytest.raises(MemoryError):
        bytearray(2**30)
    with limited(2 * 1000 + SLACK), pytest.raises(RuntimeError, match="memory"):
        torch.zeros(2**28)


def test_undamaged_files_open_and_do_not_change(kind: str, tmp_path: Path) -> None:
    path, file = written(tmp_path, kind)
    before = file.read_bytes()
    assert attempt(path, len(before))
    assert file.read_bytes() == before
