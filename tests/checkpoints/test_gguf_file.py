"""Damaged headers of GGUF files: each error names what is wrong."""

import struct
from pathlib import Path

import pytest

from llucid.checkpoints import gguf, load
from llucid.errors import LlucidError
from tests.checkpoints.gguf_files import file_of, unquantised, write_with_package
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import SLACK, TINY, limited


def header_size(data: bytes) -> int:
    """Bytes before the first tensor."""
    return data.rindex(b"output.weight") + 64


def test_damaged_headers_are_refused(tmp_path: Path) -> None:
    model = model_of(TINY)
    file = file_of(tmp_path / "a.gguf", model, {"x.same1": 1, "x.same2": 2, "general.alignment": 32})
    content = file.read_bytes()

    def at(name: bytes, after: int = 0) -> int:
        return content.index(name) + len(name) + after

    def put(place: int, code: str, *values: int) -> bytes:
        packed = struct.pack("<" + code, *values)
        return content[:place] + packed + content[place + len(packed) :]

    norm = at(b"output_norm.weight")  # dimensions, length, type, offset
    big = 2**63
    for damaged, message in (
        (content[:23], "ends within its header"),
        (put(4, "I", 1), "GGUF version 1 is not supported; expected 2 or 3"),
        (put(4, "I", 0x03000000), "big-endian"),
        (put(8, "Q", 2**60), "its header declares 1,152,921,504,606,846,976 tensors"),
        (put(16, "Q", 2**60), "declares .* metadata values; the file is damaged"),
        (put(24, "Q", big), "the name at byte 32 has 9,223,372,036,854,775,808 bytes"),
        (content.replace(b"x.same1", b"x\nsame1"), r"the name 'x\\nsame1' at byte .* is not printable"),
        (content.replace(b"x.same2", b"x.same1"), "x.same1 occurs twice"),
        (content.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "blk.0.attn_q.weight occurs twice"),
        (content.replace(b"x.same1", b"x.s\xffme1"), "is not valid UTF-8"),
        (put(at(b"x.same1"), "I", 13), "has the unknown type 13"),
        (put(at(b"x.same1"), "II", 9, 9), "has the unknown type 9"),
        (put(at(b"x.same1"), "I", 8), "ends within|declares|the name"),
        (put(at(b"ggml.tokens", 8), "Q", 2**61), "strings"),
        (put(at(b"ggml.tokens", 16), "Q", 2**61), "ends within"),
        (content[: at(b"ggml.tokens", 16 + 5)], "ends within 12 strings"),
        (put(at(b"token_type", 8), "Q", 2**62), "needs .* more bytes"),
        (put(norm, "I", 0), "output_norm.weight has 0 dimensions; expected 1 to 4"),
        (put(norm, "I", 2**32 - 1), "has 4294967295 dimensions"),
        (put(norm, "I", 5), "has 5 dimensions"),
        (put(norm, "IQ", 1, 0), r"has shape \[0\]"),
        (put(norm, "IQ", 1, 2**62), "begins at|truncated"),
        (put(norm, "IQI", 1, 8, 8), r"has shape \[8\], which Q8_0 does not allow"),
        (put(norm, "IQI", 1, 8, 40), "output_norm.weight has ggml type NVFP4, which llucid does not read; use"),
        (put(norm, "IQI", 1, 8, 31), "has ggml type number 31"),
        (put(norm, "IQIQ", 1, 8, 0, 2**63), "output_norm.weight begins at 9,223,372,036,854,775,808; expected"),
        (put(norm, "IQIQ", 1, 8, 0, 0), "output_norm.weight begins at 0; expected"),
        (content[:-100], r"truncated: output\.weight should end at byte"),
        (content[: header_size(content)], "truncated: token_embd"),
    ):
        file.write_bytes(damaged)
        with limited(2 * len(content) + SLACK), pytest.raises(LlucidError, match=message):
            load(file, device="cpu")
    file.write_bytes(put(4, "I", 2))
    assert same(load(file, device="cpu").weights, model.weights)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(LlucidError, match=r"a\.gguf: ends within its header"):
        gguf.read_header(tmp_path / "a.gguf")


def test_sizes_whose_product_overflows(tmp_path: Path) -> None:
    """2³² rows of 2³² numbers overflow to 0 in 64 bits."""
    model = model_of(TINY)
    write_with_package(tmp_path / "a.gguf", model, unquantised(model))
    content = (tmp_path / "a.gguf").read_bytes()
    at = content.rindex(b"output.weight") + len(b"output.weight") + 4
    (tmp_path / "a.gguf").write_bytes(content[:at] + struct.pack("<QQ", 2**32, 2**32) + content[at + 16 :])
    with (
        limited(2 * len(content) + SLACK),
        pytest.raises(LlucidError, match=r"truncated: output\.weight should end at"),
    ):
        load(tmp_path / "a.gguf", device="cpu")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    model = model_of(TINY)
    write_with_package(tmp_path / "a.gguf", model, unquantised(model), big_endian=True)
    with pytest.raises(LlucidError, match=r"a\.gguf: is big-endian"):
        load(tmp_path / "a.gguf")
