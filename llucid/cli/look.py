"""llucid look."""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llucid.cli.arguments import option, positional
from llucid.cli.options import ModelOptions, read_text
from llucid.errors import PRINTABLE, LlucidError, prefix_errors

if TYPE_CHECKING:
    from llucid.look.answers import Answers, Subject
    from llucid.model import Model

TEXTS = (
    "Once upon a time a fox met a goat by the well. Once upon a time a fox met a goat by the well.",
    "To be, or not to be: that is the question. To be, or not to be: that is the question.",
)
"""The default texts. Each sentence occurs twice, so that induction heads show."""


@dataclass(frozen=True, kw_only=True)
class Look(ModelOptions):
    """Open a page that shows what a model computes: llama.py with its numbers, the stream, and every head.

    The page is served on this computer only, until Ctrl-C."""

    model: str = positional("[MODEL]", "")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, or a .gguf.
    (default: llucid's own storyteller)"""
    text: str | None = positional("[TEXT]", None)
    """Text to read; - reads it from standard input. (default: a sentence, twice)"""
    ids: str | None = option("N,N,…")
    """Read these token ids instead of a text."""
    compare: str | None = option("MODEL")
    """Also open this model, to compare with; or int8 or int4, which quantises the same one."""
    html: str | None = option("FILE")
    """Write the page into this file, which opens without a server, and serve nothing."""
    size: float = 5.0
    """Megabytes that the file may have."""
    tour: bool = False
    """Begin with a guided tour."""
    port: int = 0
    """Port to serve on; 0 takes a free one."""
    no_browser: bool = False
    """Only print the page's address."""

    def run(self) -> None:
        if not 0 < self.size <= 1000:
            raise LlucidError(f"size={self.size}: must be positive, and at most 1000 megabytes")
        if self.ids is not None and self.text is not None:
            raise LlucidError("ids=: give a text or ids, not both")
        answers = self.answers()
        if self.html is None:
            return self.serve(answers)
        from llucid.files import write_atomically
        from llucid.look.export import page

        other = list[str]()
        if self.compare is not None:
            with prefix_errors(f"compare={self.compare}"):
                other.append(answers.read_again(1, answers.first))
                answers.compare(answers.first, other[0])
        made = page(answers, [*other, answers.first], limit=int(self.size * 1e6))
        write_atomically(Path(self.html), made.html)
        print(
            f"{self.html}: {len(made.html) / 1e6:.1f} MB".translate(PRINTABLE),
            *made.left_out,
            sep="\n",
            file=sys.stderr,
        )
        return None

    def serve(self, answers: "Answers") -> None:
        """Until Ctrl-C or another signal, which end the process."""
        import webbrowser

        from llucid.look.server import Server

        with Server(answers, self.port) as server:
            try:
                print(server.url, flush=True)
                if not self.no_browser:
                    webbrowser.open(server.url)
                server.serve_forever()
            except (KeyboardInterrupt, SystemExit) as stopped:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                if isinstance(stopped, KeyboardInterrupt):
                    print(file=sys.stderr, flush=True)
                # At once: Python would end the threads that still compute within PyTorch, which aborts.
                os._exit(stopped.code if isinstance(stopped, SystemExit) and isinstance(stopped.code, int) else 0)

    def answers(self) -> "Answers":
        """The text read by the model."""
        from llucid.look.answers import Answers

        [first, *others] = self.subjects()
        model = first.model()
        answers = Answers([first._replace(model=lambda: model), *others], self.given(model), self.tour)
        for number, subject in enumerate(answers.subjects):
            if subject.snapshot is None:  # snapshots are opened when they are asked for
                answers.model(number)
        return answers

    def given(self, model: "Model") -> str | list[int]:
        """The text or the ids that are given, or else a text that the tokenizer can encode."""
        from llucid.tokenizers.prompts import prompt_ids

        if self.ids is not None:
            try:
                return [int(word) for word in self.ids.split(",")]
            except ValueError as error:
                raise LlucidError(f"ids={self.ids}: expected whole numbers with commas between them") from error
        if self.text is not None:
            return read_text(self.text)
        for text in TEXTS if model.tokenizer else ():
            with contextlib.suppress(LlucidError):
                ids = prompt_ids(model.text(), text)
                return text if len(ids) <= model.config.context else ids[: model.config.context]
        return [0, 1, 0, 1]

    def subjects(self) -> list["Subject"]:
        """The model, the one to compare with, and the snapshots of its run."""
        from llucid.look.answers import Subject
        from llucid.training.snapshots import snapshots_of

        path, name = self.model or "storyteller", self.model or "the storyteller"
        found = [Subject(name, lambda: self.open(path))]
        if self.compare in ("int8", "int4"):
            found.append(Subject(f"{name}, {self.compare}", lambda: self.open(path, self.compare)))
        elif other := self.compare:
            found.append(Subject(other, lambda: self.open(other)))
        for step, folder in snapshots_of(Path(path)):
            found.append(Subject(f"step {step}", lambda folder=folder: self.open(str(folder)), step))
        return found

    def open(self, path: str, quantize: Any = None) -> "Model":
        """The model at `path`, as tensors."""
        return replace(self, model=path, quantize=quantize or self.quantize).load(mapped=False)
