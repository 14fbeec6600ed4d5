"""The command line: a thin module per command.

arguments.py    the words of a command line → a command's dataclass
options.py      options that several commands have
"""

import importlib
import inspect
import io
import os
import re
import sys
from typing import Any

from llucid.cli.arguments import parse, spell_options
from llucid.errors import LlucidError, one_line

COMMANDS = ("train", "generate", "chat", "predict", "look", "ladder", "info", "convert", "bench")

NO_MEMORY = "allocate memory|out of memory|size calculation overflowed|failed to map segment"
"""Words in the messages of libraries that lack memory."""


def command_class(name: str) -> type[Any]:
    """The dataclass of a command: its fields are the options, and `run` does the work."""
    if name not in COMMANDS:
        raise LlucidError(
            f"{name}: there is no such command; expected one of: {', '.join(COMMANDS)}; see: llucid --help"
        )
    return getattr(importlib.import_module(f"llucid.cli.{name}"), name.capitalize())


def read_command(words: list[str]) -> Any:
    """The command that the words ask for, with its options. Raises LlucidError for words that do not fit."""
    return parse(command_class(words[0]), words[1:], f"llucid {words[0]}")


def overview() -> str:
    """What `llucid --help` prints."""
    firsts = {name: re.split(r"\.(?=\s|$)", str(inspect.getdoc(command_class(name))))[0] for name in COMMANDS}
    return "\n".join(
        [
            "usage: llucid COMMAND [options]",
            "",
            "llucid: a Llama you can see through.",
            "",
            *(f"  {name:<8}  {first}" for name, first in firsts.items()),
            "",
            "llucid COMMAND --help   explains a command",
            "llucid --version        prints the version",
            "--debug                 with any command: shows where in the program an error comes from",
        ]
    )


def main() -> None:
    """Runs the command line; bad input ends with one line on standard error and status 2."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal shows a question mark for what it lacks; a file gets the bytes of file names that are not UTF-8.
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "surrogateescape")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    words = [*(word for word in given[:end] if word != "--debug"), *given[end:]]
    debug = len(words) < len(given)
    try:
        if words == ["--version"]:
            from importlib.metadata import version

            return print("llucid", version("llucid"))
        if not words or words[0] in ("-h", "--help", "help"):
            return print(overview())
        command = read_command(words)
        from llucid.arrays.memory import keep_freed

        keep_freed()
        command.run()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        print(f"error: {letter!a} cannot be encoded as {error.encoding}; set PYTHONIOENCODING=utf-8", file=sys.stderr)
        sys.exit(2)
    except (LlucidError, OSError, MemoryError, RuntimeError, ImportError) as error:
        # Out of memory is a RuntimeError in PyTorch and JAX, and an ImportError where a library cannot be mapped.
        full = re.search(NO_MEMORY, str(error), re.I)
        memory = isinstance(error, MemoryError) or (full and isinstance(error, RuntimeError | ImportError))
        if debug or (isinstance(error, RuntimeError | ImportError) and not memory):
            raise
        message = "there is not enough memory" if memory else one_line(error)
        if words[0] in COMMANDS:
            message = spell_options(message, command_class(words[0]))
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
