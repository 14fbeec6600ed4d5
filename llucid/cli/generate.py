"""llucid generate."""

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llucid.cli.arguments import option, positional
from llucid.cli.options import ModelOptions, SamplingOptions, read_text, utf8_text
from llucid.errors import LlucidError, printable_json

LARGEST = 1 << 26
"""Most bytes of a file of prompts."""


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
    prompts: str | None = option("FILE")
    """Continue each line of this file instead, or the "prompt" of each if its lines are JSON objects."""
    json: bool = False
    """Print one JSON object per text, on a line, with its tokens and the reason why it ended."""
    logprobs: bool = False
    """With --json: also the log-probability of each token."""
    speculate: bool = False
    """Guess repetitions of earlier text, such as code or quotations: the same text, faster where guesses are right."""

    def run(self) -> None:
        """Streams one text, or prints several with a line between them."""
        from llucid.generation import Statistics

        if self.logprobs and not self.json:
            raise LlucidError("logprobs=True: printed only with json=; give both")
        if self.prompt and self.prompts is not None:
            raise LlucidError("prompts=: leave out the PROMPT, or prompts=")
        prompts = [read_text(self.prompt)] if self.prompts is None else read_prompts(self.prompts)
        model, statistics = self.load(), Statistics()
        sampling = self.sampling(model)
        options: dict[str, Any] = {
            **dataclasses.asdict(sampling),
            "logit_bias": dict(sampling.logit_bias),
            **{name: getattr(self, name) for name in ("max_tokens", "seed", "speculate")},
            "stop": tuple(map(utf8_text, self.stop)),
            "statistics": statistics,
        }
        if self.num != 1 or self.prompts is not None or self.json:
            self.print_all(model, prompts, options)
        else:
            self.stream(model, prompts[0], options)
        if sys.stdout.isatty():
            print(file=sys.stderr)
        print(statistics, file=sys.stderr)
        if statistics.slid:
            print(
                f"the context of {model.config.context} tokens was full; each time, its oldest half was forgotten",
                file=sys.stderr,
            )

    def stream(self, model: Any, prompt: str, options: dict[str, Any]) -> None:
        """Prints the prompt and its continuation as it is written, until Ctrl-C."""
        from llucid.generation import generate
        from llucid.generation.screen import screen

        pieces, shown = generate(model, prompt, **options), screen()
        print(shown.push(prompt), end="", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for piece in pieces:
                print(shown.push(piece), end="", flush=True)
        print(shown.finish(), flush=True)

    def print_all(self, model: Any, prompts: list[str], options: dict[str, Any]) -> None:
        """Writes all continuations at once, then prints them; after Ctrl-C, what was written so far."""
        from llucid.generation import generate_batch
        from llucid.generation.screen import screen

        if self.json:
            for completion in generate_batch(model, prompts, samples=self.num, **options):
                row = completion._asdict()
                if not self.logprobs:
                    del row["logprobs"]
                print(printable_json(row))
            sys.stdout.flush()
            return
        texts, shown = list[str](), screen()
        with contextlib.suppress(KeyboardInterrupt):
            generate_batch(model, prompts, samples=self.num, texts=texts, **options)
        whole = [prompts[number // self.num] + text for number, text in enumerate(texts)]
        print(shown.push(f"\n{'-' * 40}\n".join(whole)) + shown.finish(), flush=True)


def read_prompts(file: str) -> list[str]:
    """The lines of a text file that are not empty, or the texts under "prompt" in a file of JSON lines."""
    from llucid.files import json_value, read_file

    try:
        text = read_file(Path(file), LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LlucidError(f"prompts={file}: not a UTF-8 text file") from error
    if "\0" in text:
        raise LlucidError(f"prompts={file}: a UTF-16 or binary file; save it as UTF-8")
    lines = {number: line.removesuffix("\r") for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise LlucidError(f"prompts={file}: there is no prompt in it")
    if not next(iter(lines.values())).startswith("{"):
        return [*lines.values()]
    prompts: list[str] = []
    for number, line in lines.items():
        try:
            prompt: Any = json_value(line.encode())["prompt"]
            if not isinstance(prompt, str):
                raise ValueError
            prompts.append(prompt)
        except (ValueError, KeyError, TypeError) as error:
            expected = '{"prompt": "Once upon a time"}'
            raise LlucidError(
                f"prompts={file}: line {number}: expected {expected}, or plain text in all lines"
            ) from error
    return prompts
