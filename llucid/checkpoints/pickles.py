"""PyTorch's own files, `.pth`, `.pt` and `.bin`: a pickle and raw numbers in a zip archive, read without running it."""

import ctypes
import mmap
import pickletools
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from llucid.checkpoints.model import Progress, name_of_dtype
from llucid.checkpoints.tensors import Entry, Leaf
from llucid.errors import LlucidError
from llucid.files import replacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch Size"
    r"|torch (?!Untyped|Typed)\w+Storage|torch (float|bfloat|int|uint)\d+|torch bool"
)
"""The functions that a file of tensors needs. PyTorch's own list is longer: its `bytearray` can be told to allocate
anything."""


def is_archive(file: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    return file.is_file() and first_bytes(file, 4) == b"PK\x03\x04"


def first_bytes(file: Path, count: int) -> bytes:
    """At most `count` bytes."""
    with open(file, "rb") as opened:
        return opened.read(count)


def pickle_inside(file: Path) -> bytes:
    """The pickle in an archive. Raises LlucidError unless the archive is plain, so that no size in it is a lie."""
    size = file.stat().st_size
    with ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != ZIP_STORED for member in members) or sum(m.file_size for m in members) > size:
            raise LlucidError(f"{file}: its contents are compressed, which PyTorch never does")
        return archive.read(next(member for member in members if member.filename.endswith("/data.pkl")))


def read_pickle(file: Path) -> Any:
    """What `torch.save` saved in `file`, its tensors mapped into memory, nothing in it run.

    Raises LlucidError for a file that is damaged, calls anything that building tensors does not need, or holds tensors
    larger than itself.
    """
    import torch

    if not is_archive(file):
        old = "; save it again with torch.save" if first_bytes(file, 1) == b"\x80" else ""
        raise LlucidError(f"{file}: not a file of PyTorch's since version 1.6{old}")
    try:
        for code, argument, _ in pickletools.genops(pickle_inside(file)):
            if code.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not HARMLESS.fullmatch(str(argument)):
                raise LlucidError(f"{file}: refused, because opening it would call {str(argument).replace(' ', '.')}")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except LlucidError:
        raise
    except Exception as error:  # zipfile, pickletools and torch raise nearly anything for damaged bytes
        raise LlucidError(f"{file}: not a whole PyTorch file ({error or type(error).__name__})") from error


def entries_of(state: Any, file: Path) -> dict[str, Entry]:
    """The tensors of a state dict, without the prefix that `torch.compile` adds to their names.

    Raises LlucidError for anything else, and for tensors that claim more numbers than the file can have.
    """
    from torch import Tensor

    if not isinstance(state, dict) or not all(isinstance(item, Tensor) for item in state.values()):
        raise LlucidError(f"{file}: expected a dictionary of tensors, found something else")
    # Twice, because a tied matrix is named twice and stored once. Numbers repeated by a stride of 0 are more.
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > 2 * file.stat().st_size:
        raise LlucidError(f"{file}: its tensors claim to be larger than the file")

    def entry(tensor: "Tensor") -> Entry:
        return Entry(tuple(tensor.shape), name_of_dtype(tensor.dtype), lambda: tensor.detach().contiguous())

    return {str(name).removeprefix("_orig_mod."): entry(tensor) for name, tensor in state.items()}


def release(mapped: "Tensor") -> None:
    """Gives the memory of a mapped tensor that nobody has changed back to the system, so that a copy of it does not
    count twice. It can still be read, from the file again. Linux alone has this meaning of MADV_DONTNEED."""
    page = mmap.PAGESIZE
    begin = -(-mapped.data_ptr() // page) * page  # whole pages: what shares the first and the last is left alone
    length = (mapped.data_ptr() + mapped.nbytes) // page * page - begin
    if sys.platform == "linux" and mapped.is_contiguous() and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def write_pickle(file: Path, tensors: Mapping[str, Leaf], dtype: "torch.dtype | None", progress: Progress) -> None:
    """Writes a state dict as `torch.save` does, one tensor in memory at a time, whole or not at all.

    A tensor with two names is stored once. `torch.save` itself would write the whole storage behind every tensor,
    which for a mapped one is another's file.
    """
    import torch
    from torch.serialization import skip_data

    distinct = {id(tensor): tensor for tensor in tensors.values()}
    blanks = {key: torch.empty(tensor.shape, dtype=dtype or tensor.dtype) for key, tensor in distinct.items()}
    total, done = sum(blank.numel() * blank.element_size() for blank in blanks.values()), 0
    with replacing(file) as temporary:
        with tempfile.TemporaryDirectory(dir=file.parent, suffix=".partial") as folder, skip_data():
            skeleton = Path(folder) / "skeleton"
            torch.save({name: blanks[id(tensor)] for name, tensor in tensors.items()}, skeleton)
            pickled = pickle_inside(skeleton)  # all but the numbers, which were a hole in a file and untouched memory
        with ZipFile(temporary, "w", ZIP_STORED) as archive:
            parts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
            for name, content in parts.items():
                archive.writestr(ZipInfo(f"consolidated/{name}"), content)
            for number, (key, tensor) in enumerate(distinct.items()):
                numbers = bytes_of(tensor, blanks[key].dtype)
                record = ZipInfo(f"consolidated/data/{number}")
                record.extra = padding(temporary_position(archive) + 30 + 20 + len(record.filename))
                with archive.open(record, "w", force_zip64=True) as opened:
                    opened.write(numbers)
                done += len(numbers)
                progress(done, total)


def temporary_position(archive: ZipFile) -> int:
    """Where the next member of an archive being written begins."""
    assert archive.fp is not None
    return archive.fp.tell()


def padding(position: int) -> bytes:
    """An empty field for a zip member's header, such that numbers which would begin at `position` begin at 64·n."""
    return b"FB" + (count := -(position + 4) % 64).to_bytes(2, "little") + bytes(count)


def bytes_of(tensor: Leaf, dtype: "torch.dtype") -> memoryview:
    """A tensor's numbers, little-endian and row by row, as they are in files."""
    import torch

    return memoryview(tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().reshape(-1))  # pyright: ignore
