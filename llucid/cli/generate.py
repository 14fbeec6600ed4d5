"""llucid generate."""

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from llucid.cli.arguments import option, positional
from llucid.cli.options import ModelOptions, SamplingOptions, read_text
from llucid.errors import LlucidError


@dataclass(frozen=True, kw_only=True)
class Generate(SamplingOptions, ModelOptions):
    """Continue a prompt. The text goes to standard output, everything else to standard error."""

    prompt: str = positional("[PROMPT]", "")
    """Text to continue; - reads it from standard input."""
    max_tokens: int = 256
    """Longest continuation."""
    stop: tuple[str, ...] = option("TEXT", repeated=True)
    """End before this text; may be given several times."""
    num: int = 1
    """How many texts to write, all at once."""
    speculate: bool = False
    """Guess repetitions of earlier text, such as code or quotations: the same text, faster where guesses are right."""

    def run(self) -> None:
        """Streams one text, or prints several with a line between them."""
        from llucid.generation import Statistics, generate, generate_batch
        from llucid.generation.screen import screen

        if self.speculate and self.num != 1:
            raise LlucidError("speculate=True: one text at a time; leave out num= or speculate=")
        statistics, prompt = Statistics(), read_text(self.prompt)
        model, sampling = self.load(), self.sampling()
        options: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": self.seed,
            "stop": self.stop,
            "statistics": statistics,
        }
        if self.num == 1:
            pieces = generate(model, prompt, speculate=self.speculate, **options)
            shown = screen()
            print(shown.push(prompt), end="", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                for piece in pieces:
                    print(shown.push(piece), end="", flush=True)
            print(shown.finish(), flush=True)
        else:
            texts, shown = list[str](), screen()
            with contextlib.suppress(KeyboardInterrupt):
                generate_batch(model, [prompt], samples=self.num, texts=texts, **options)
            text = f"\n{'-' * 40}\n".join(prompt + text for text in texts)
            print(shown.push(text) + shown.finish(), flush=True)
        if sys.stdout.isatty():
            print(file=sys.stderr)
        print(statistics, file=sys.stderr)
        if statistics.slid:
            print(
                f"the context of {model.config.context} tokens was full; each time, its oldest half was forgotten",
                file=sys.stderr,
            )
