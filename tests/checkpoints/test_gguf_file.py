"""Headers of GGUF files that are damaged on purpose, each refused by what is wrong with it."""

import struct
from pathlib import Path

import pytest

from llucid.checkpoints import gguf, load
from llucid.errors import LlucidError
from tests.checkpoints.gguf_files import by_their_writer, file_of, plain
from tests.checkpoints.models import model_of, same
from tests.checkpoints.test_hostile import SLACK, TINY, limited


def header_of(data: bytes) -> int:
    """Bytes before the first tensor."""
    return data.rindex(b"output.weight") + 64


def test_headers_that_are_damaged_on_purpose(tmp_path: Path) -> None:
    model = model_of(TINY)
    file = file_of(tmp_path / "a.gguf", model, {"x.same1": 1, "x.same2": 2, "general.alignment": 32})
    whole = file.read_bytes()

    def at(name: bytes, after: int = 0) -> int:
        return whole.index(name) + len(name) + after

    def put(place: int, code: str, *values: int) -> bytes:
        packed = struct.pack("<" + code, *values)
        return whole[:place] + packed + whole[place + len(packed) :]

    norm = at(b"output_norm.weight")  # dimensions, length, type, offset
    big = 2**63
    for damaged, said in (
        (whole[:23], "ends within its header"),
        (put(4, "I", 1), "version 1 of GGUF is not supported; 2 and 3 are"),
        (put(4, "I", 0x03000000), "big-endian"),
        (put(8, "Q", 2**60), "promises 1,152,921,504,606,846,976 tensors"),
        (put(16, "Q", 2**60), "promises .* values; the file is damaged"),
        (put(24, "Q", big), "a name of 9,223,372,036,854,775,808 bytes"),
        (whole.replace(b"x.same1", b"x\nsame1"), r"a name 'x\\nsame1' at byte"),
        (whole.replace(b"x.same2", b"x.same1"), "x.same1 is there twice"),
        (whole.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "blk.0.attn_q.weight is there twice"),
        (whole.replace(b"x.same1", b"x.s\xffme1"), "should be UTF-8"),
        (put(at(b"x.same1"), "I", 13), "a value of type 13"),
        (put(at(b"x.same1"), "II", 9, 9), "a value of type 9"),
        (put(at(b"x.same1"), "I", 8), "ends within|promises|a name of"),
        (put(at(b"ggml.tokens", 8), "Q", 2**61), "strings"),
        (put(at(b"ggml.tokens", 16), "Q", 2**61), "ends within"),
        (whole[: at(b"ggml.tokens", 16 + 5)], "ends within 12 strings"),
        (put(at(b"token_type", 8), "Q", 2**62), "promises .* more"),
        (put(norm, "I", 0), "output_norm.weight has 0 dimensions; expected 1 to 4"),
        (put(norm, "I", 2**32 - 1), "has 4294967295 dimensions"),
        (put(norm, "I", 5), "has 5 dimensions"),
        (put(norm, "IQ", 1, 0), r"has shape \[0\]"),
        (put(norm, "IQ", 1, 2**62), "begins at|truncated"),
        (put(norm, "IQI", 1, 8, 8), r"has shape \[8\], which Q8_0 cannot have"),
        (put(norm, "IQI", 1, 8, 18), "output_norm.weight is of ggml's type IQ3_XXS, which llucid does not open"),
        (put(norm, "IQI", 1, 8, 31), "of ggml's type number 31"),
        (put(norm, "IQIQ", 1, 8, 0, 2**63), "output_norm.weight begins at 9,223,372,036,854,775,808; it should at"),
        (put(norm, "IQIQ", 1, 8, 0, 0), "output_norm.weight begins at 0; it should at"),
        (whole[:-100], r"truncated: output\.weight should end at byte"),
        (whole[: header_of(whole)], "truncated: token_embd"),
    ):
        file.write_bytes(damaged)
        with limited(2 * len(whole) + SLACK), pytest.raises(LlucidError, match=said):
            load(file, device="cpu")
    file.write_bytes(put(4, "I", 2))
    assert same(load(file, device="cpu").weights, model.weights)


def test_an_empty_file_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(LlucidError, match=r"a\.gguf: ends within its header"):
        gguf.read_header(tmp_path / "a.gguf")


def test_sizes_whose_product_wraps_around(tmp_path: Path) -> None:
    """2³² rows of 2³² numbers are 0 in 64 bits."""
    model = model_of(TINY)
    by_their_writer(tmp_path / "a.gguf", model, plain(model))
    whole = (tmp_path / "a.gguf").read_bytes()
    at = whole.rindex(b"output.weight") + len(b"output.weight") + 4
    (tmp_path / "a.gguf").write_bytes(whole[:at] + struct.pack("<QQ", 2**32, 2**32) + whole[at + 16 :])
    with limited(2 * len(whole) + SLACK), pytest.raises(LlucidError, match=r"truncated: output\.weight should end at"):
        load(tmp_path / "a.gguf", device="cpu")


def test_files_for_other_machines(tmp_path: Path) -> None:
    model = model_of(TINY)
    by_their_writer(tmp_path / "a.gguf", model, plain(model), big=True)
    with pytest.raises(LlucidError, match=r"a\.gguf: is for machines that store numbers big-endian"):
        load(tmp_path / "a.gguf")
