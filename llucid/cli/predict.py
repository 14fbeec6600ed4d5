"""llucid predict."""

from dataclasses import dataclass

from llucid.cli.arguments import option, positional
from llucid.cli.options import ModelOptions, read_text, utf8_text
from llucid.errors import LlucidError, printable_json


@dataclass(frozen=True, kw_only=True)
class Predict(ModelOptions):
    """Show the likeliest next tokens and their probabilities."""

    model: str = positional("MODEL", "")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, a .gguf, or storyteller."""
    text: str = positional("[TEXT]", "")
    """Text to continue; - reads it from standard input."""
    top_k: int = 5
    """How many tokens to show."""
    json: bool = False
    """Print JSON instead of a table."""
    toy: str | None = option("TEXT")
    """Instead of a model: build a vocabulary of the words of TEXT and a few more, an untrained model, and show the
    steps."""

    def run(self) -> None:
        from rich.console import Console

        if self.toy is not None:
            if self.json or self.model:
                raise LlucidError(f"toy={self.toy}: takes {'no model' if self.model else 'no json='}; leave that out")
            from llucid.generation.toy import show_toy

            return show_toy(utf8_text(self.toy), self.top_k, Console())
        if not self.model:
            raise LlucidError("missing: MODEL; see: llucid predict --help")
        from llucid.generation import predict
        from llucid.generation.predictions import table

        predictions = predict(self.load(), read_text(self.text), self.top_k)
        if self.json:
            print(printable_json([prediction._asdict() for prediction in predictions], indent=2))
        else:
            drawn = table(predictions)
            wanted = Console(width=200).measure(drawn).maximum
            Console(width=max(Console().width, wanted)).print(drawn)  # whole lines, which a narrow terminal wraps
        return None
