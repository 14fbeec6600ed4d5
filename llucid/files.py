"""Files that are whole or not there: written under another name, then renamed. And the folder of what is made."""

import json
import os
import shutil
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llucid.errors import LlucidError


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """A temporary path beside `path`; what is written there takes its place at once, or not at all.

    A kill at any moment leaves the old file or the new one, with the old one's permissions. Where `path` is a link,
    what it leads to is replaced; to a pipe or a device is written. Errors remove the temporary file; a disk
    that is full is an OSError, which names `path`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if place.is_file():
            shutil.copymode(place, temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, place)
    except OSError as error:
        if error.errno is None:  # what NumPy makes of a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        if error.filename is None or str(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except SafetensorError as error:  # what the safetensors library makes of one
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, not even what is not there can be removed
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(unfinished: Path, out: Path) -> Generator[None]:
    """Inside, an OSError tells of what is in `unfinished` as of what will be in `out`: by the user's own name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # and `replacing` has told of the file in words
            raise OSError(str(error).replace(str(unfinished), str(out))) from error
        name = str(error.filename).replace(str(unfinished), str(out))
        raise OSError(error.errno, error.strerror, name) from error


def is_occupied(out: Path) -> bool:
    """Whether there is anything at `out` but an empty folder, or what a killed process left unfinished in one."""
    return out.exists() and (not out.is_dir() or any(path.suffix != ".partial" for path in out.iterdir()))


@contextmanager
def atomic_folder(out: Path) -> Generator[Path]:
    """A folder whose files are `out`'s once all of them are there, and else nobody's.

    Raises OSError, which names `out`. An empty folder is filled and not replaced: a shell may be in it, or a disk
    mounted there. Where `out` is a link to nothing, what it leads to is made.
    """
    place, there = Path(os.path.realpath(out)), out.is_dir()
    unfinished = (place if there else place.parent) / f".{place.name}.{os.getpid()}.partial"
    try:
        with naming(unfinished, out):
            shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process that had our number
            unfinished.mkdir(parents=True)
            yield unfinished
            if there:
                for made in sorted(unfinished.iterdir()):  # train.toml, which makes it a run, is the last
                    made.rename(place / made.name)
            else:
                unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: $LLUCID_CACHE, or llucid/ in the user's cache folder.

    Raises OSError for a user who has no home, as a container's may be.
    """
    if told := os.environ.get("LLUCID_CACHE"):
        return Path(told)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "llucid"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llucid"
    except RuntimeError as error:
        raise OSError("this user has no home folder; LLUCID_CACHE can name a folder for what llucid keeps") from error


def cache_file(name: str) -> Path:
    """The file of this name in the cache, there or not; its folder is. Raises LlucidError if that cannot be made."""
    file = cache_folder() / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlucidError(
            f"{file.parent}: cannot be made ({error.strerror}); LLUCID_CACHE can name another for what llucid keeps"
        ) from error
    return file


def first_bytes(file: Path, count: int) -> bytes:
    """At most `count` bytes of a regular file; none of anything else, such as a pipe, which could wait for ever."""
    if not file.is_file():
        return b""
    with open(file, "rb") as opened:
        return opened.read(count)


def refuse_pointer(file: Path) -> None:
    """Raises LlucidError if the file is what Git LFS leaves in place of a large file."""
    if first_bytes(file, 30).startswith(b"version https://git-lfs"):
        raise LlucidError(f"{file}: is only a pointer to the file, left by Git LFS; fetch the file with: git lfs pull")


LARGEST_JSON = 2**24
"""Bytes of a JSON file that describes a model. As Python objects they may take 25 times as much memory."""


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises LlucidError if it cannot be read, if it has more than `limit` bytes, or if it is no regular file: reading a
    pipe may wait for ever, and a device may have no end.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LlucidError(f"{path}: not a regular file")
            content = file.read(limit + 1)
    except OSError as error:
        raise LlucidError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise LlucidError(f"{path}: larger than {limit:,} bytes, the most that is read of such a file")
    return content


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file. Raises LlucidError if the file holds anything else, and as `read_file` does."""
    return parse_json(read_file(path, limit), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The object in a JSON file's content. Raises LlucidError if it is anything else."""
    if content.count(b"[") + content.count(b"{") > 1000 + len(content) // 8:  # `[]` takes 25 times its size in memory
        raise LlucidError(f"{path}: not read, since it is mostly empty lists or objects")
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LlucidError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(told, dict):
        raise LlucidError(f"{path}: expected a JSON object, found {type(told).__name__}")
    return told
