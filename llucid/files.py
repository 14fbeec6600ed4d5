"""Files that are whole or not there: written under another name, then renamed. And the folder of what is made."""

import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

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
