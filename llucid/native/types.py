"""llama.c's types, as ctypes has them. `layout` is compared with `llama_layout` when the library is loaded."""

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p


class CMatrix(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("kind", "rows", "columns")] + [
        (name, c_void_p) for name in ("numbers", "scales", "bias")
    ]


class CBlock(ctypes.Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        *((name, CMatrix) for name in ("query", "key", "value", "output")),
        ("feed_forward_norm", c_void_p),
        *((name, CMatrix) for name in ("gate", "up", "down")),
    ]


class CLlama(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn")),
        *((name, c_float) for name in ("norm_eps", "rope_factor")),
        ("theta", c_void_p),
        ("embedding", CMatrix),
        ("blocks", POINTER(CBlock)),
        ("norm", c_void_p),
        ("output", CMatrix),
    ]


class CCache(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("kind", "page")),
        ("slots", c_int64),
        *((name, POINTER(c_void_p)) for name in ("keys", "values")),
    ]


class CTokens(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("count", "scored")),
        *((name, c_void_p) for name in ("ids", "positions", "pages", "first", "wanted")),
    ]


def layout() -> list[int]:
    """The size of each type, followed by the offset of each of its fields."""
    types = (CMatrix, CBlock, CLlama, CCache, CTokens)
    offsets = ([getattr(kind, name).offset for name, _ in kind._fields_] for kind in types)  # pyright: ignore
    return [number for kind, found in zip(types, offsets, strict=True) for number in (ctypes.sizeof(kind), *found)]
