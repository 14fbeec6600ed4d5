"""Builds llama.c with the system's compiler when it is first needed, and loads it from the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import eq
from pathlib import Path

from llucid.errors import one_line
from llucid.files import cache_folder, digest_of, digests, locked_folder
from llucid.native.types import CCache, CLlama, CTokens, layout

HERE = Path(__file__).parent
LLAMA_C, LLAMA_PY = HERE.parent / "llama.c", HERE.parent / "llama.py"
WRITTEN_FOR = "572a87f0433aea43", "4aa41577f7c63c9c"
"""The llama.py that llama.c computes: digests of its text, and of what it says without comments and docstrings."""
PARTS = ("numbers", "memory", "threads", "plain", "avx512", "kquants", "ahead")
SOURCES = (LLAMA_C, *(HERE / f"{name}.h" for name in PARTS))
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread"),
    # Arithmetic as IEEE 754 has it; sums are reordered only where ANY_ORDER says so.
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
)
X86 = ("x86_64", "amd64", "i386", "i686")
SECONDS = 300
"""That a compiler may take, beside others that run."""
PATIENCE = 60
"""Seconds to wait for another process that builds; it may have been stopped. Then this one builds, too."""


class Unavailable(Exception):
    """Why llama.c cannot be used on this machine."""


def processor() -> str:
    """What the compiler's -march=native depends on."""
    found = [platform.system(), platform.machine(), platform.processor()]
    if (file := Path("/proc/cpuinfo")).is_file():
        first = file.read_text().split("\n\n")[0].splitlines()
        found += [line for line in first if line.startswith(("model name", "flags", "Features", "CPU part", "isa"))]
    return "\n".join(found)


def compiler() -> list[str]:
    """The command that $CC names, or the first C compiler on the path. Raises Unavailable if there is none."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise Unavailable(f"CC={os.environ['CC']} is not a command ({error})") from error
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise Unavailable("no C compiler was found (cc, gcc or clang, or what CC names)")


def built(flags: Sequence[str] = FLAGS) -> Path:
    """The library made from llama.c for this processor, in the user's cache folder; built if it is not there.

    Its name has a digest of all that it is made from and one of its content, so that a damaged file is never loaded. Of
    several processes that start at once one builds and the others wait. Raises Unavailable if it cannot be built.
    """
    if sys.byteorder != "little" or sys.platform == "win32":
        raise Unavailable("the processor or system is of a kind that llama.c does not know")
    command = compiler()
    tuned = "-march=native" if platform.machine().lower() in X86 else "-mcpu=native"
    digest = hashlib.sha256("\n".join([*command, *flags, processor()]).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    name = f"llama-{digest.hexdigest()[:20]}"
    try:
        folder = cache_folder()
        if library := _usable(folder, name):
            return library
        folder.mkdir(parents=True, exist_ok=True)
        if sys.stderr.isatty():
            warn(f"llucid: {command[0]} builds llama.c for this processor, once: a few seconds")
        with _lock(folder):
            return _usable(folder, name) or _build([*command, *flags, tuned], folder, name)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"llama.c could not be built ({one_line(error)})") from error


def _build(command: Sequence[str], folder: Path, name: str) -> Path:
    temporary = folder / f".{name}.{os.getpid()}.partial"
    try:
        done = subprocess.run(
            [*command, str(LLAMA_C), "-o", str(temporary), "-lm"],
            capture_output=True,
            timeout=SECONDS,
            text=True,
            errors="replace",
        )
        if done.returncode or not temporary.is_file():
            status = f"status {done.returncode}" if done.returncode else "it wrote nothing"
            reason = re.search(".*(error|failed).*", done.stderr) or [status]
            raise Unavailable(f"llama.c could not be built by {command[0]} ({reason[0].strip()[:160]})")
        temporary.chmod(0o755)
        library = folder / f"{name}-{digest_of(temporary)}.so"
        os.replace(temporary, library)
        return library
    finally:
        temporary.unlink(missing_ok=True)


def _usable(folder: Path, name: str) -> Path | None:
    """The library of this name, if it is whole and nobody else can have written it.

    Raises Unavailable for a folder that others can write to.
    """
    if folder.is_dir() and not _trusted(folder):
        raise Unavailable(f"other users can write to the cache folder {folder}; LLUCID_CACHE can name another")
    for file in folder.glob(f"{name}-*.so"):
        if file.is_file() and _trusted(file) and file.stem == f"{name}-{digest_of(file)}":
            return file
    return None


def _trusted(path: Path) -> bool:
    """Whether it belongs to this user or to root, and not everybody can write to it."""
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o002


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    """Inside, no other process holds the lock, on a file system with locks, unless it holds it for PATIENCE."""
    end = time.monotonic() + PATIENCE
    while True:
        with locked_folder(folder) as free:
            if free is not False or time.monotonic() > end:
                yield
                return
        time.sleep(0.05)


@cache
def load(flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """llama.c, built and loaded. Raises Unavailable, also if llama.py has been changed."""
    if not any(map(eq, digests(LLAMA_PY.read_text(encoding="utf-8-sig")), WRITTEN_FOR)):
        raise Unavailable("llama.py has been changed, and llama.c computes what it said before")
    try:
        library = ctypes.CDLL(str(built(flags)))
    except OSError as error:
        raise Unavailable(f"the library built from llama.c cannot be loaded ({one_line(error)})") from error
    ours = layout()
    if list((ctypes.c_int32 * len(ours)).in_dll(library, "llama_layout")) != ours:
        raise Unavailable("this compiler lays llama.c's types out otherwise than Python")
    pointers = [ctypes.POINTER(kind) for kind in (CLlama, CCache, CTokens)]
    library.llama_step.argtypes = [*pointers, ctypes.c_int, ctypes.c_void_p]
    return library


@cache
def warn(line: str) -> None:
    """Prints a line on standard error, once."""
    print(line, file=sys.stderr)
