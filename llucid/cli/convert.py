"""llucid convert."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llucid.cli.arguments import option, positional
from llucid.errors import PRINTABLE


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another format. Says what that format cannot hold."""

    model: str = positional("MODEL")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, a .gguf, or storyteller."""
    out: str = positional("OUT")
    """Folder to make, for huggingface and meta, or file, for llama2c and gguf."""
    to: Literal["huggingface", "meta", "llama2c", "gguf"]
    """Format to write."""
    version: Literal[0, 1, 2] | None = None
    """Of llama2c's format: 0 is what its run.c reads, 1 has a better header, 2 is runq.c's int8 (default: 0)."""
    tokenizer: str | None = option("PATH")
    """Use this tokenizer instead of the model's own."""
    dtype: str | None = option("{float32,bfloat16,float16,q8_0,q4_0}")
    """Write in this precision; q8_0 and q4_0 are for gguf (default: the file's own)."""

    def run(self) -> None:
        """Writes, then prints what opening the new file will have to guess."""
        from llucid.checkpoints import convert, describe, find
        from llucid.checkpoints.gguf_file import read_file_header
        from llucid.tokenizers import FILES
        from llucid.tokenizers.gguf_vocabulary import WHOLE_JSON

        model = find(self.model)  # once, since afterwards a folder of this name may hide the repository
        with progress_bar() as progress:
            guessed = convert(
                model,
                self.out,
                self.to,
                version=self.version,
                tokenizer=self.tokenizer,
                dtype=self.dtype,
                progress=progress,
            )
        beside = [name for name in FILES if self.to == "llama2c" and (Path(self.out).parent / name).is_file()]
        tokenizer = f", its tokenizer beside it, in {beside[0]}" if beside else ""
        print(f"the model is in {self.out}{tokenizer}".translate(PRINTABLE))
        before, after = (describe(path)["dtype"] for path in (model, self.out))
        packed = [dtype for dtype in before.split(", ") if dtype.startswith(("Q", "int"))]
        if packed and self.dtype is None and "int" not in after:
            message = f"{' and '.join(packed)} weights were written as {after}; --dtype chooses another type"
            print(message, file=sys.stderr)
        if self.to == "gguf" and WHOLE_JSON in read_file_header(Path(self.out)).fields:
            print(
                "llama.cpp encodes some texts differently: it adds a space before them where this tokenizer adds none, "
                "as before a text that begins with a space. llucid does not: it reads the tokenizer.json in the file",
                file=sys.stderr,
            )
        for name, (before, after) in guessed.items():
            print(f"{self.to} does not hold {name}: it was {before} and will be read as {after}", file=sys.stderr)


@contextlib.contextmanager
def progress_bar() -> Generator[Callable[[int, int], None]]:
    """Yields a function that takes how much is done of how much, and shows it after two seconds on standard error."""
    from rich.console import Console
    from rich.progress import Progress

    console, start = Console(stderr=True), time.monotonic()
    bar = Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task("writing")

    def update(done: int, total: int) -> None:
        if time.monotonic() - start > 2:
            bar.start()
            bar.update(task, completed=done, total=total, refresh=True)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
