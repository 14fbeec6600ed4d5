"""GGUF models that are split over several files, written by llama.cpp's own Python package."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llucid.arrays import Quantized
from llucid.checkpoints import convert, describe, load
from llucid.errors import LlucidError
from llucid.weights import dequantize, named_leaves
from tests.checkpoints.gguf_files import WIDE, gguf, package_name, random_blocks, unquantised, write_with_package
from tests.checkpoints.models import model_of, same

FIRST, SECOND, THIRD = (f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of 12 tensors, some of them quantised, in three files of 5, 5 and 2, and in one file."""
    model = model_of(WIDE)
    tensors = unquantised(model)
    for path in ("embedding", "blocks.0.feed_forward.down"):
        blocks = random_blocks("Q8_0", 300 if path == "embedding" else 256, 256)
        tensors[package_name(path)] = (blocks, gguf.GGMLQuantizationType.Q8_0)
    write_with_package(tmp_path / "m.gguf", model, tensors, split_max_tensors=5)
    write_with_package(tmp_path / "one.gguf", model, tensors)
    assert sorted(file.name for file in tmp_path.iterdir()) == [FIRST, SECOND, THIRD, "one.gguf"]
    return tmp_path


def test_part_1_opens_the_whole_model(folder: Path) -> None:
    for quantize in (None, "file"):
        split, one = (load(folder / name, device="cpu", quantize=quantize) for name in (FIRST, "one.gguf"))
        assert split.config == one.config == WIDE
        kinds = [isinstance(leaf, Quantized) for _, leaf in named_leaves(split.weights)]
        assert kinds.count(True) == (2 if quantize else 0)
        assert same(dequantize(split.weights), dequantize(one.weights))
        assert split.tokenizer.encode("a") == one.tokenizer.encode("a")
    mapped = load(folder / FIRST, device="cpu", mapped=True)
    assert all(type(leaf.numbers).__module__ == "numpy" for _, leaf in named_leaves(mapped.weights))
    convert(folder / FIRST, folder / "joined.gguf", "gguf")
    convert(folder / "one.gguf", folder / "same.gguf", "gguf")
    assert (folder / "joined.gguf").read_bytes() == (folder / "same.gguf").read_bytes()


def test_a_split_model_is_described_as_a_whole(folder: Path) -> None:
    split, one = describe(folder / FIRST), describe(folder / "one.gguf")
    size = sum((folder / name).stat().st_size for name in (FIRST, SECOND, THIRD))
    assert split.pop("bytes") == f"{size:,}"
    del one["bytes"]
    assert {**split, "path": ""} == {**one, "path": ""}


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def with_value(key: str, value: int) -> Callable[[bytes], bytes]:
    """Changes the low byte of a number in the metadata."""

    def change(content: bytes) -> bytes:
        at = content.index(key.encode()) + len(key) + 4
        return content[:at] + bytes([value]) + content[at + 1 :]

    return change


@pytest.mark.parametrize(
    ("damage", "opened", "message"),
    [
        (lambda folder: (folder / SECOND).unlink(), FIRST, f"{SECOND}: is missing; the model is split into 3 files"),
        (lambda folder: (folder / THIRD).unlink(), FIRST, f"{THIRD}: is missing; the model is split into 3 files"),
        (lambda folder: None, THIRD, f"{THIRD}: is part 3 of a model that is split into 3 files; open part 1"),
        (
            lambda folder: (folder / FIRST).rename(folder / "renamed.gguf"),
            "renamed.gguf",
            "renamed.gguf: is part 1 of a model that is split into 3 files; its name must end in -00001-of-00003.gguf",
        ),
        (lambda folder: (folder / THIRD).replace(folder / SECOND), FIRST, f"{SECOND}: is part 3 of 3; expected part 2"),
        (lambda folder: (folder / "one.gguf").replace(folder / SECOND), FIRST, f"{SECOND}: is part 1 of 1; expected"),
        (changed(SECOND, with_value("split.count", 4)), FIRST, f"{SECOND}: is part 2 of 4; expected part 2 of 3"),
        (changed(SECOND, lambda content: content[:-1]), FIRST, f"{SECOND}: truncated: "),
        (changed(SECOND, lambda content: content[:20]), FIRST, f"{SECOND}: ends within its header"),
        (changed(SECOND, lambda content: b""), FIRST, f"{SECOND}: the file is empty"),
        (
            changed(SECOND, lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
            FIRST,
            "git lfs pull",
        ),
        (
            changed(SECOND, lambda content: content.replace(b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight")),
            FIRST,
            "blk.0.attn_q.weight occurs twice",
        ),
        (changed(FIRST, with_value("split.tensors.count", 11)), FIRST, "has 12 tensors in 3 files; expected 11"),
        (changed(FIRST, with_value("split.no", 7)), FIRST, "is part 8 of a model that is split into 3 files"),
        (changed(SECOND, lambda content: content.replace(b"split.count", b"split.coun_")), FIRST, "is part 2 of 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_incomplete_and_damaged_parts_are_refused(
    damage: Callable[[Path], object], opened: str, message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(LlucidError, match=re.escape(message)) as error:
        load(folder / opened, device="cpu")
    assert "\n" not in str(error.value)
