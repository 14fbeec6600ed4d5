"""PyTorch's files, `.pth`, `.pt` and `.bin`: a zip archive of a pickle, which is never executed, and raw numbers."""

import math
import pickletools
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile, ZipInfo, _EndRecData  # pyright: ignore

import numpy as np
from numpy.typing import NDArray

from llucid.arrays.dtypes import converted, dtype_of, name_of_dtype, width_of
from llucid.arrays.memory import map_file
from llucid.checkpoints.format import Progress
from llucid.checkpoints.tensors import Leaf, Stored, mapped, plain_name, tensor_of
from llucid.errors import LlucidError, prefix_errors
from llucid.files import atomic_file, first_bytes, refuse_stand_in
from llucid.properties import cached_property

STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.BFloat16Storage": "bfloat16",
    "torch.HalfStorage": "float16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
"""The dtype of each class of storage."""

ALLOWED = re.compile(
    rf"{'|'.join(map(re.escape, STORAGES))}|collections\.OrderedDict|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Size|bool|(float|bfloat|int|uint)\d+)"
)
"""The names that a file of tensors needs. None is ever imported."""

LARGEST_DIRECTORY = 2**22
"""The largest central directory of an archive, in bytes: ten times that of the largest Llama."""


class Name(NamedTuple):
    """A function, class or dtype that a pickle names."""

    name: str


class Storage(NamedTuple):
    """An array of numbers in a file, of which tensors are views."""

    dtype: str
    member: ZipInfo


def is_archive(file: Path) -> bool:
    """Whether a file begins like a zip archive."""
    return file.is_file() and first_bytes(file, 4) == b"PK\x03\x04"


class Archive:
    """An open PyTorch archive. Raises LlucidError if its members are compressed, since their sizes could then exceed
    the file's, or if its pickle is large compared with its numbers: a byte of a pickle can take 60 bytes of memory."""

    def __init__(self, file: Path) -> None:
        size = file.stat().st_size
        self.file = file
        with open(file, "rb") as opened:
            end: Any = _EndRecData(opened)
        if end and end[5] > LARGEST_DIRECTORY:  # each byte of it takes 12 bytes of memory
            raise LlucidError(f"{file}: its directory has {end[5]:,} bytes; the file is damaged")
        with ZipFile(file) as archive:
            members = archive.infolist()
            if (
                any(member.compress_type != ZIP_STORED for member in members)
                or sum(m.file_size for m in members) > size
            ):
                raise LlucidError(f"{file}: its members are compressed, as PyTorch's never are")
            self.members = {member.filename.partition("/")[2]: member for member in members}
            if self.members["data.pkl"].file_size > 2**19 + size // 64:
                raise LlucidError(f"{file}: its pickle is too large for its tensors")
            self.pickle = archive.read(self.members["data.pkl"])
            order = self.members.get("byteorder")
            self.little = order is None or archive.read(order) == b"little"

    @cached_property
    def mapped(self) -> NDArray[np.uint8]:
        """The file, memory-mapped."""
        return map_file(self.file)

    def storage(self, kind: Any, storage: Any, key: Any, *_: Any) -> Storage:
        """The storage that a persistent id of a pickle names; its device and length are ignored."""
        if kind != "storage" or type(key) is not str:  # the text of nested lists that share parts may be endless
            raise ValueError("a storage without a name")
        return Storage(STORAGES[storage.name], self.members[f"data/{key}"])

    def tensor(self, storage: Storage, offset: Any, shape: Any, stride: Any, *_: Any) -> Stored:
        """A view of a storage; offset and stride are in numbers, not bytes. Raises LlucidError if it exceeds that."""
        (dtype, member), lengths = storage, (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in lengths):
            raise ValueError("a tensor with an impossible shape")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        width = width_of(dtype)
        if 0 not in shape and (last + 1) * width > member.file_size:
            raise LlucidError(f"{self.file}: a tensor exceeds its numbers in the file")

        def bits() -> NDArray[Any]:
            if 0 in shape:
                return np.empty(shape, f"<i{width}")
            header = bytes(self.mapped[member.header_offset :][:30])
            begin = member.header_offset + 30 + sum(struct.unpack_from("<HH", header.ljust(30), 26))
            if member.header_offset < 0 or header[:4] != b"PK\3\4" or begin + member.file_size > len(self.mapped):
                raise LlucidError(f"{self.file}: truncated: {member.filename} is incomplete")
            strides = [step * width for step in stride]
            return np.ndarray(shape, f"<i{width}", self.mapped, begin + offset * width, strides)

        return mapped(tuple(shape), dtype, bits)


def read_pickle(file: Path) -> Any:
    """The object that `torch.save` wrote to `file`, with Stored tensors. Executes nothing.

    Raises LlucidError for a file that is damaged, calls anything that tensors do not need, or has tensors that exceed
    their numbers in the file.
    """
    refuse_stand_in(file)
    if not is_archive(file):
        old = "; save it again with torch.save" if first_bytes(file, 1) == b"\x80" else ""
        raise LlucidError(f"{file}: not a PyTorch file of version 1.6 or later{old}")
    try:
        archive = Archive(file)
        if not archive.little:
            raise LlucidError(f"{file}: its numbers are big-endian; save it again on a little-endian machine")
        return unpickle(archive)
    except LlucidError:
        raise
    except Exception as error:  # zipfile and pickletools raise many types for damaged bytes
        raise LlucidError(f"{file}: not a complete PyTorch file ({error or type(error).__name__})") from error


def unpickle(archive: Archive) -> Any:
    """The object that a pickle builds, of dictionaries, lists, tuples, numbers, text and tensors only.

    Python's own unpickler would import and call any function that the pickle names; here only those listed below are
    allowed, and none is executed.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        begin = marks.pop()
        items = stack[begin:]
        del stack[begin:]
        return items

    for code, argument, _ in pickletools.genops(archive.pickle):
        match code.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if code.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                # A tuple could take forever to hash, and any number of large integers have the same hash.
                if not all(isinstance(key, str | float | None) or is_small(key) for key in items[::2]):
                    raise ValueError("a dictionary with keys of another type")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(allowed(str(argument).replace(" ", "."), archive.file))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(module) is not str or type(name) is not str:
                    raise ValueError("a name that is not text")
                stack.append(allowed(f"{module}.{name}", archive.file))
            case "BINPERSID":
                stack.append(archive.storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                match stack.pop().name, arguments:
                    case "collections.OrderedDict", ():
                        stack.append({})
                    case "torch._utils._rebuild_tensor_v2", _:
                        stack.append(archive.tensor(*arguments))
                    case ("torch._utils._rebuild_parameter", (built, *_)) | ("torch.Size", (built,)):
                        stack.append(built)
                    case name, _:
                        raise LlucidError(f"{archive.file}: refused, because opening it would call {name}")
            case "BUILD":
                stack.pop()  # attributes, such as the _metadata of a state dict
            case _:
                raise ValueError(f"its pickle has the opcode {code.name}, which torch.save does not write")
    return stack.pop()


def is_small(key: Any) -> bool:
    return isinstance(key, int) and abs(key) < 1 << 60


def allowed(name: str, file: Path) -> Name:
    """The name that a pickle would import. Raises LlucidError if a file of tensors does not need it."""
    if not ALLOWED.fullmatch(name):
        raise LlucidError(f"{file}: refused, because opening it would call {name}")
    return Name(name)


def entries_of(state: Any, file: Path) -> dict[str, Stored]:
    """The tensors of a state dict, by their plain names (see `plain_name`).

    Raises LlucidError for any other object, and for tensors that are together larger than the file can be.
    """
    if not isinstance(state, dict) or not all(isinstance(item, Stored) for item in state.values()):
        raise LlucidError(f"{file}: expected a dictionary of tensors")
    # Twice, since a tied matrix has two names and is stored once. A stride of 0 can claim much more.
    if sum(math.prod(entry.shape) * width_of(entry.dtype) for entry in state.values()) > 2 * file.stat().st_size:
        raise LlucidError(f"{file}: its tensors are larger than the file")
    return {plain_name(str(name)): entry for name, entry in state.items()}


def write_pickle(file: Path, tensors: Mapping[str, Leaf], dtype: str | None, progress: Progress) -> None:
    """Writes a state dict like `torch.save`, atomically and with one tensor in memory at a time.

    A tensor with two names is stored once. `torch.save` itself would write the whole storage of each tensor, which for
    a mapped one is the whole source file.
    """
    import torch
    from torch.serialization import skip_data

    distinct = {id(tensor): tensor for tensor in tensors.values()}
    names = {id(tensor): name for name, tensor in tensors.items()}
    kinds = {key: dtype or name_of_dtype(tensor.dtype) for key, tensor in distinct.items()}
    blanks = {
        key: torch.empty(tensor.shape, dtype=dtype_of(kinds[key]), device="cpu") for key, tensor in distinct.items()
    }
    total, done = sum(blank.nbytes for blank in blanks.values()), 0
    with atomic_file(file) as temporary:
        with tempfile.TemporaryDirectory(dir=file.parent, suffix=".partial") as folder, skip_data():
            skeleton = Path(folder) / "skeleton"
            try:
                torch.save({name: blanks[id(tensor)] for name, tensor in tensors.items()}, skeleton)
            except RuntimeError as error:  # as PyTorch reports a full disk
                raise OSError("the disk may be full") from error
            pickled = Archive(skeleton).pickle  # without numbers: skip_data leaves a hole in the file
        with ZipFile(temporary, "w", ZIP_STORED) as archive:
            parts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
            for name, content in parts.items():
                archive.writestr(ZipInfo(f"consolidated/{name}"), content)
            for number, (key, tensor) in enumerate(distinct.items()):
                with prefix_errors(names[key]):
                    numbers = bytes_of(tensor, kinds[key])
                record = ZipInfo(f"consolidated/data/{number}")
                assert archive.fp is not None
                record.extra = padding(archive.fp.tell() + 30 + 20 + len(record.filename))
                with archive.open(record, "w", force_zip64=True) as opened:
                    opened.write(numbers)
                done += len(numbers)
                progress(done, total)


def padding(position: int) -> bytes:
    """A field for a zip member's header that moves its numbers from `position` to the next multiple of 64."""
    return b"FB" + (count := -(position + 4) % 64).to_bytes(2, "little") + bytes(count)


def bytes_of(leaf: Leaf, dtype: str) -> memoryview:
    """The numbers of a tensor in this dtype, little-endian and row by row. Raises LlucidError as `converted` does."""
    import torch

    tensor = converted(tensor_of(leaf), dtype_of(dtype)).contiguous()
    return memoryview(tensor.view(torch.uint8).numpy().reshape(-1))  # pyright: ignore
