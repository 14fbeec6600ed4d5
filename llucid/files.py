"""Atomic writes: under a temporary name, then renamed. Bounded reads. Paths as they are typed. And the cache folder."""

import ast
import errno
import filecmp
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llucid.errors import LlucidError


@contextmanager
def utf8_path(path: Path) -> Generator[Path]:
    """Yields the path, or a temporary link to it if UTF-8 cannot encode it, for PyTorch, which expects that."""
    if path == Path(os.fsencode(path).decode(errors="replace")):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link


def temporary_name(name: str, writer: object = None) -> str:
    """What `name` is called while `writer`, by default this thread, writes it; shorter if long, since names have 255
    bytes."""
    short = name if len(name) <= 50 else name[:30] + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{short}.{writer or this_writer()}.partial"


@contextmanager
def locked_folder(folder: Path) -> Generator[bool | None]:
    """Yields whether this has the folder's lock, until the end or the process's; None where there are no locks: on
    Windows, and on some file systems. Processes in different containers see each other's locks, but not their numbers.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    opened, free = os.open(folder, os.O_RDONLY), None
    try:
        with suppress(OSError):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except BlockingIOError:
                free = False
        yield free
    finally:
        os.close(opened)


OWN = set[str]()
"""Names of the temporary folders that this process is writing, for file systems without locks."""


@contextmanager
def unfinished_folder(at: Path, name: str, out: Path) -> Generator[Path]:
    """Yields a new folder in `at` for what is to be called `name`, locked; removes it at the end. If it cannot be made,
    an OSError names `out`."""
    writer = f"{os.getpid()}-{secrets.token_hex(4)}"
    folder, unlocked = at / temporary_name(name, writer), at / f".{writer}.new.partial"  # a name that is no leftover's
    try:
        with replaced_in_errors(unlocked, out):
            unlocked.mkdir(parents=True)
        with locked_folder(unlocked):
            OWN.add(folder.name)
            os.rename(unlocked, folder)
            yield folder
    finally:
        OWN.discard(folder.name)
        _discard(unlocked)
        _discard(folder)


def this_writer() -> str:
    """The number of this process, and that of this thread if it is not the main one."""
    thread = "" if threading.current_thread() is threading.main_thread() else f"-{threading.get_native_id()}"
    return f"{os.getpid()}{thread}"


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` at the end.

    If the process is killed, either the old or the new file is there, complete. The new file keeps the permissions of
    the old one. If `path` is a link, its target is replaced. A pipe or a device is written to directly. An error
    removes the temporary file.
    A full disk raises an OSError that names `path`.
    """
    direct = path.exists() and not (path.is_file() or path.is_dir())
    place = Path(os.path.realpath(path))
    temporary = path if direct else place.with_name(temporary_name(place.name))
    try:
        if not direct:
            temporary.touch()  # with the permissions of any new file; a library may replace it by a private one
        mode = (place if place.is_file() else temporary).stat().st_mode
        yield temporary
        if direct:
            return
        if temporary.stat().st_mode != mode:  # some file systems refuse to set it
            temporary.chmod(stat.S_IMODE(mode))
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, place)
    except OSError as error:
        if error.errno is None:  # as NumPy reports a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        if error.filename is None or str(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # safetensors reports a full disk so; importing it takes time
            raise
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        if not direct:
            with suppress(OSError):  # on a read-only file system, even removing a missing file fails
                temporary.unlink(missing_ok=True)


@contextmanager
def replaced_in_errors(unfinished: Path, out: Path) -> Generator[None]:
    """Replaces the path `unfinished` by `out`, which the user knows, in every OSError and LlucidError raised inside."""
    try:
        yield
    except LlucidError as error:
        error.args = (str(error).replace(str(unfinished), str(out)),)
        raise
    except OSError as error:
        if error.filename is None:  # `atomic_file` has put the path in the message
            raise OSError(str(error).replace(str(unfinished), str(out))) from error
        name = str(error.filename).replace(str(unfinished), str(out))
        raise OSError(error.errno, error.strerror, name) from error


def is_occupied(out: Path) -> bool:
    """Whether `out` exists, other than as an empty folder or one that a killed process only began to fill."""
    if not out.is_dir():
        return out.exists()
    moved = [path.name for unfinished in _left(out) for path in _moved(unfinished)]
    return any(path.suffix != ".partial" and path.name not in moved for path in out.iterdir())


class OccupiedError(LlucidError):
    """There is something at the place of a new file or folder."""

    def __init__(self, out: Path) -> None:
        kind = "folder" if out.is_dir() else "file"
        super().__init__(f"{out}: something is there already; choose another {kind}")


@contextmanager
def atomic_folder(out: Path, *, file: bool = False) -> Generator[Path]:
    """Yields a temporary folder, and moves it to `out` at the end; an error removes it. Removes what killed processes
    left of `out`.

    An existing empty folder is filled, not replaced: it may be a shell's working directory or a mount point. If `out`
    is a dangling link, its target is created. Every OSError names `out`. If `file`, yields the path of a file in that
    folder instead; what is written beside it is moved first, and may be beside `out` already with the same content.

    Raises OccupiedError, and keeps what is there, if something is at `out`, now or at the end.
    """
    remove_unfinished(out)
    if is_occupied(out):
        raise OccupiedError(out)
    place, there = Path(os.path.realpath(out)), out.is_dir() and not file
    with (
        unfinished_folder(place if there else place.parent, place.name, out) as unfinished,
        replaced_in_errors(unfinished, out.parent if file else out),
    ):
        yield unfinished / place.name if file else unfinished
        if is_occupied(out):
            raise OccupiedError(out)
        try:
            # What opens comes last: the file, or train.toml, which makes the folder a run.
            made = sorted(unfinished.iterdir(), key=lambda path: (file and path.name == place.name, path.name))
            if there:
                moving = {path.name: _identity(path) for path in made}
                (unfinished / MOVING).write_text(json.dumps(moving), encoding="utf-8")
            if there or file:
                for path in made:
                    _move_new(path, unfinished.parent / path.name, same=file)
                (unfinished / MOVING).unlink(missing_ok=True)
            else:
                unfinished.rename(place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise OccupiedError(out) from error
            raise


@contextmanager
def filled_folder(out: Path, replaced: Sequence[str]) -> Generator[Path]:
    """Yields a temporary folder whose files are moved into the folder `out` at the end; an error removes it. Files in
    `out` that match a pattern of `replaced` are then removed, if none has replaced them. Removes what killed processes
    left of `out`. Every OSError names `out`."""
    remove_unfinished(out)
    place = Path(os.path.realpath(out))
    with unfinished_folder(place, place.name, out) as unfinished, replaced_in_errors(unfinished, out):
        yield unfinished
        made = sorted(path.name for path in unfinished.iterdir())
        for name in made:
            if (place / name).is_file():
                shutil.copymode(place / name, unfinished / name)
            os.replace(unfinished / name, place / name)
        for old in {old for pattern in replaced for old in place.glob(pattern)}:
            if old.name not in made and (old.is_file() or old.is_symlink()):
                old.unlink()


MOVING = "names.partial"
"""The file in a temporary folder with the names that are moved from there into the folder around it, and what each is:
its `_identity`, which nobody elsewhere could know, so that a folder that was fetched names nothing of the user's."""


def _identity(path: Path) -> list[int]:
    """The inode and the time of the last change: a move or a second name keeps both."""
    found = path.lstat()
    return [found.st_ino, found.st_mtime_ns]


def _move_new(source: Path, target: Path, same: bool) -> None:
    """Moves a file or folder; a file may also stay, with two names. Raises an OSError if the target exists; if `same`,
    only if its content differs."""
    if same and target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    try:
        os.link(source, target)
    except OSError as error:  # the target exists, the source is a folder, or the file system has no hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)


def _moved(unfinished: Path) -> list[Path]:
    """What was moved out of a temporary folder into the one around it, if some of it is still to be moved. None by the
    list of another user, who may know the identities of what is in a shared folder."""
    try:
        owners = {path.lstat().st_uid for path in (unfinished, unfinished / MOVING)}
        if hasattr(os, "geteuid") and owners != {os.geteuid()}:
            return []
        moving = read_json(unfinished / MOVING)
        return [path for path in unfinished.parent.iterdir() if _identity(path) == moving.get(path.name)]
    except (LlucidError, OSError):  # there is none, or another process is at work
        return []


def _discard(unfinished: Path) -> None:
    """Removes a temporary file or folder; if its files were being moved, also those that were."""
    for path in (*_moved(unfinished), unfinished / MOVING, unfinished):
        with suppress(OSError):
            remove(path)


def remove_unfinished(out: Path) -> None:
    """Removes what killed processes left half-written of the file or folder `out`."""
    for path in _left(out):
        _discard(path)


def _left(out: Path) -> list[Path]:
    place = Path(os.path.realpath(out))
    found = [path for at in (place.parent, place) for path in at.glob(".*.partial")]
    names = [temporary_name(place.name, path.name.split(".")[-2]) for path in found]
    return [path for path, name in zip(found, names, strict=True) if path.name == name and not is_being_written(path)]


def is_being_written(unfinished: Path) -> bool:
    """Whether another process or thread is running that writes this temporary file or folder."""
    try:
        if unfinished.name in OWN:
            return True
        if unfinished.is_dir():
            with locked_folder(unfinished) as free:
                if free is not None:
                    return not free
        writer = unfinished.name.split(".")[-2]
        process, _, thread = writer.partition("-")
        os.kill(int(process), 0)
        if int(process) != os.getpid():
            return True
        # In containers, processes often have the same id, so this one's may be that of one that was killed.
        threads = [str(other.native_id) for other in threading.enumerate()]
        return writer != this_writer() and (not thread or thread in threads)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # another user's
        return True


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file by `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def typed(path: str | Path) -> str:
    """A path as it is typed in a shell, also one that begins with a dash."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


OTHER_CACHE = "set LLUCID_CACHE to another folder for llucid's cache"


def cache_folder() -> Path:
    """The folder for files that can be made or fetched again: $LLUCID_CACHE, or llucid/ in the user's cache folder.

    Raises OSError for a user without a home folder, as in some containers.
    """
    if folder := os.environ.get("LLUCID_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "llucid"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llucid"
    except RuntimeError as error:
        raise OSError("this user has no home folder; set LLUCID_CACHE to a folder for llucid's cache") from error


def cache_file(name: str) -> Path:
    """The path of a file in the cache; makes its folder. Raises LlucidError if the folder cannot be made."""
    file = cache_folder() / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlucidError(f"{file.parent}: cannot be made ({error.strerror}); {OTHER_CACHE}") from error
    return file


def cached(name: str, write: Callable[[Path], None]) -> Path:
    """The file in the cache that `write` makes at a given path, now or before.

    Its name begins with `name` and ends with a digest of its content: a damaged file is made again. Removes what killed
    processes left of it.
    """
    file = cache_file(name)
    for found in file.parent.glob(f"{file.name}-*"):
        if found.name == f"{file.name}-{digest_of(found)}":
            return found
        found.unlink(missing_ok=True)
    remove_unfinished(file)
    if not os.access(file.parent, os.W_OK):
        raise LlucidError(f"{file.parent}: cannot be written to; {OTHER_CACHE}")
    with unfinished_folder(file.parent, file.name, file) as folder, replaced_in_errors(folder, file.parent):
        with atomic_file(folder / file.name) as temporary:
            write(temporary)
        return (folder / file.name).rename(f"{file}-{digest_of(folder / file.name)}")


def digest_of(file: Path) -> str:
    """The first 20 digits of its SHA-256."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:20]


def digests(text: str) -> Iterator[str]:
    """Of a source's text, and of what it says without comments and docstrings."""
    yield hashlib.sha256(text.encode()).hexdigest()[:16]
    with suppress(SyntaxError):  # which whoever imports it will see
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [each for each in node.body if not is_text(each)]
        yield hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring, also one below a variable."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def first_bytes(file: Path, count: int) -> bytes:
    """At most `count` bytes of a regular file; none of anything else, since reading a pipe could block forever, nor of
    a file without a size, as in /proc."""
    if not file.is_file() or not file.stat().st_size:
        return b""
    with open(file, "rb") as opened:
        return opened.read(count)


def refuse_stand_in(file: Path) -> None:
    """Raises LlucidError if the file is empty, a pointer that Git LFS leaves in place of a large file, a page that a
    server sends instead of one, or a model in one of ggml's old formats."""
    head = first_bytes(file, 100).lstrip().lower()
    if file.is_file() and not file.stat().st_size:
        raise LlucidError(f"{file}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise LlucidError(f"{file}: only a Git LFS pointer to the file; fetch the file with: git lfs pull")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise LlucidError(f"{file}: a web page, not the file; download the file again, from the link to itself")
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        raise LlucidError(f"{file}: a file of llama.cpp from before GGUF (August 2023); convert the original to GGUF")


LARGEST_JSON = 2**24
"""The largest JSON file about a model, in bytes. As Python objects it may take 25 times as much memory."""
DEEPEST_JSON = 100
"""Lists and objects within one another in JSON. The parser takes a thousand; functions that recurse over that exceed
Python's limit."""


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises LlucidError if it cannot be read, has more than `limit` bytes, or is not a regular file: reading a pipe may
    block forever, and a device may have no end.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise LlucidError(f"{path}: not a regular file")
            # Allocates as much as it is asked for. None is what may come later, as from a file of /proc.
            content = file.read(min(limit, found.st_size) + 1) or b""
    except OSError as error:
        raise LlucidError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise LlucidError(f"{path}: larger than {limit:,} bytes, the limit for such a file")
    return content


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file. Raises LlucidError if it is not an object, and as `read_file` does."""
    return parse_json(read_file(path, limit), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `content`, read from `path`. Raises LlucidError if it is not an object."""
    try:
        value = json_value(content)
    except ValueError as error:
        refuse_stand_in(path)
        raise LlucidError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(value, dict):
        raise LlucidError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def lists_and_objects(content: bytes) -> int:
    """How many lists and objects begin in JSON; brackets inside texts do not count."""
    import numpy as np

    letters = np.frombuffer(content.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    inside = np.bitwise_xor.accumulate(letters == ord('"'))
    return int(np.count_nonzero(((letters == ord("[")) | (letters == ord("{"))) & ~inside))


def json_value(content: bytes) -> Any:
    """The JSON value in `content`, with U+FFFD for halves of UTF-16 pairs, which no file could hold.

    Raises ValueError for anything else, for one nested deeper than DEEPEST_JSON, and for one mostly of empty lists or
    objects, which would take 25 times as much memory.
    """
    most = 1000 + len(content) // 8
    if content.count(b"[") + content.count(b"{") > most and lists_and_objects(content) > most:
        raise ValueError("mostly empty lists or objects")
    try:
        text = content.decode(json.detect_encoding(content))
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):
            text = json.dumps(value, ensure_ascii=False)
            value = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level: list[Any] = [value]
    for _ in range(DEEPEST_JSON + 1):
        if {list, dict}.isdisjoint(map(type, level)):
            return value
        outer = (each.values() if type(each) is dict else each for each in level if type(each) in (list, dict))
        level = [*chain.from_iterable(outer)]
    raise ValueError("nested too deeply")
