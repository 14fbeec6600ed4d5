"""llucid chat."""

from dataclasses import dataclass

from llucid.cli.arguments import positional
from llucid.cli.options import ModelOptions, SamplingOptions

HINT = """It comes with llucid, was trained from scratch, and knows only made-up fables. Try:
  Tell me a tale about a goat in winter
  Who found the bell?"""


@dataclass(frozen=True, kw_only=True)
class Chat(SamplingOptions, ModelOptions):
    """Talk with a model in the terminal. Through a pipe, each line is a message; answers go to standard output."""

    model: str = positional("[MODEL]", "")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, or a .gguf.
    (default: llucid's own storyteller)"""
    system: str | None = None
    """Instructions for the model, before the first message. (default: none)"""
    max_tokens: int = 1024
    """Longest answer."""
    format: str | None = None
    """llama2, llama3, plain (none), or the name of one of the model's own templates. (default: the model's own)"""

    def run(self) -> None:
        """Talks until the user leaves or the input ends."""
        from llucid.chat import STORYTELLER
        from llucid.chat.terminal import talk

        talk(
            self.load(str(STORYTELLER)),
            self.model or "the storyteller",
            hint="" if self.model else HINT,
            system=self.system or "",
            format=self.format,
            sampling=self.sampling(),
            max_tokens=self.max_tokens,
            seed=self.seed,
        )
