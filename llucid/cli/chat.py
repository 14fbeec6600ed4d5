"""llucid chat."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llucid.cli.arguments import option, positional
from llucid.cli.options import ModelOptions, SamplingOptions, utf8_text
from llucid.errors import LlucidError

HINT = """It comes with llucid, was trained from scratch, and knows only made-up fables. Try:
  Tell me a tale about a goat in winter
  Who is in it?
  Tell it again"""


@dataclass(frozen=True, kw_only=True)
class Chat(SamplingOptions, ModelOptions):
    """Talk with a model in the terminal. Through a pipe, each line is a message; answers go to standard output."""

    model: str = positional("[MODEL]", "")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, or a .gguf
    (default: llucid's own storyteller)."""
    system: str | None = None
    """Instructions for the model, before the first message (default: none)."""
    max_tokens: int = 1024
    """Longest answer."""
    format: str | None = None
    """llama2, llama3, plain (none), or the name of one of the model's own templates (default: the model's own)."""

    tools: str | None = option("FILE")
    """For the chat template: a JSON list of the tools that the model may call (default: none)."""
    documents: str | None = option("FILE")
    """For the chat template: a JSON list of documents to answer from (default: none)."""
    enable_thinking: bool | None = None
    """For the chat template: whether the model thinks before it answers (default: the template's)."""

    def run(self) -> None:
        from llucid.chat import Session
        from llucid.chat.terminal import talk

        values = {
            "tools": self.tools and read_list("tools", self.tools),
            "documents": self.documents and read_list("documents", self.documents),
            "enable_thinking": self.enable_thinking,
        }
        model = self.load("storyteller")
        begin = partial(
            Session,
            model,
            system=utf8_text(self.system or ""),
            sampling=self.sampling(model),
            max_tokens=self.max_tokens,
            seed=self.seed,
            template_values={name: value for name, value in values.items() if value is not None},
        )
        talk(begin, self.model or "the storyteller", format=self.format, hint="" if self.model else HINT)


def read_list(name: str, file: str) -> Any:
    """The list of objects in a JSON file that the option `name` gives."""
    from llucid.dialogs.formats import check_objects
    from llucid.files import LARGEST_JSON, json_value, read_file

    content = read_file(Path(file), LARGEST_JSON)
    with suppress(ValueError):
        return check_objects(name, json_value(content))
    raise LlucidError(f"{name}={file}: expected a JSON list of objects")
