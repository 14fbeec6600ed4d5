"""The command line: one command a job, each a thin layer over the package."""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import tyro

from llucid.arrays.memory import keep_freed
from llucid.cli.arguments import parse
from llucid.errors import LlucidError, one_line
from llucid.training.settings import Settings

if TYPE_CHECKING:
    from llucid import checkpoints

MODEL = "A run, a Hugging Face folder or repository, one of Meta's, a .bin of llama2.c's, or a .gguf."
UNSET = tyro.conf.arg(help_behavior_hint="(default: unset)")
Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL", help=MODEL)]

# Options that several commands have. Optional[X], and not X | None, for which tyro imports typeguard, which takes long;
# so it does for tuple[str, ...].
Temperature = Annotated[float, tyro.conf.arg(help="Below 1 the likely becomes likelier; 0 always takes the likeliest.")]
TopK = Annotated[Optional[int], tyro.conf.arg(help="Choose from the k likeliest tokens.")]
TopP = Annotated[
    float,
    tyro.conf.arg(help="Choose from the likeliest tokens that together have this probability; 1 is all of them."),
]
MinP = Annotated[
    Optional[float], tyro.conf.arg(help="Choose from the tokens at least this share as likely as the likeliest.")
]
OtherTokenizer = Annotated[Optional[str], tyro.conf.arg(help="Path of a tokenizer to use instead of the model's own.")]
Dtype = Annotated[
    Optional[str],
    tyro.conf.arg(metavar="{float32,bfloat16,float16}", help="Compute in this precision instead of the file's own."),
]
Quantize = Annotated[
    Optional[Literal["int8", "int4"]],
    tyro.conf.arg(
        help="Hold matrices in 8 or 4 bits: less memory, and faster on a CPU; GGUF's Q8_0 and Q4_0 stay as they are."
    ),
]
Device = Annotated[Optional[str], tyro.conf.arg(help="cpu, cuda, mps, ... (the fastest one here, unless given).")]


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a Llama from scratch; leaves a folder that llucid and transformers open."""

    def run(self) -> None:
        """Trains, then says where everything is."""
        from rich.console import Console

        from llucid.tokenizers import load_tokenizer
        from llucid.training.loop import train
        from llucid.training.settings import read_toml

        console = Console(soft_wrap=not sys.stdout.isatty())
        out = train(self, console)
        console.print(f"the model is in {out}, its learning curve in {out / 'curve.png'}", highlight=False)
        if self.out:  # who named the folder knows what to do with it
            return
        console.print("try:", highlight=False)
        chat, run = read_toml(out / "train.toml").chat, shlex.quote(str(out))
        text = ' "the "'
        try:
            load_tokenizer(out).encode("the ")
        except LlucidError:  # its characters are others
            text = ""
        for command in (f"chat {run}" if chat else f"generate {run}", f"predict {run}{text}", f"info {run}"):
            console.print(f"    llucid {command}", highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Generate:
    """Write on from a prompt: the text goes to standard output, everything else to standard error."""

    model: Model
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]")] = ""
    """Text to go on from; - reads it from standard input."""
    max_tokens: int = 256
    """Tokens to write at most."""
    temperature: Temperature = 0.8
    top_k: TopK = None
    top_p: TopP = 0.95
    min_p: MinP = None
    seed: Optional[int] = None
    """The same seed, the same text."""
    stop: tyro.conf.UseAppendAction[tuple[Any, ...]] = ()
    """End before this text; may be given several times."""
    num: int = 1
    """How many texts to write, all at once."""
    speculate: bool = False
    """Guess what repeats earlier text, such as code or a quotation: the same text, sooner where guesses are right."""
    tokenizer: OtherTokenizer = None
    dtype: Dtype = None
    quantize: Quantize = None
    device: Device = None

    def run(self) -> None:
        """Streams one text, or prints several with a line between them."""
        from llucid.generation import Statistics, generate, generate_batch
        from llucid.generation.screen import screen

        if self.speculate and self.num != 1:
            raise LlucidError("--speculate: one text at a time; leave out --num, or --speculate")
        statistics, prompt = Statistics(), text_of(self.prompt)
        model = opened(self.model, self.tokenizer, self.dtype, self.device, self.quantize)
        numbers: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stop,
            "statistics": statistics,
        }
        if self.num == 1:
            pieces = generate(model, prompt, speculate=self.speculate, **numbers)
            shown = screen()
            print(shown.push(prompt), end="", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                for piece in pieces:
                    print(shown.push(piece), end="", flush=True)
            print(shown.finish(), flush=True)
        else:
            texts, shown = list[str](), screen()
            with contextlib.suppress(KeyboardInterrupt):
                generate_batch(model, [prompt], samples=self.num, texts=texts, **numbers)
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


HINT = """It comes with llucid, which trained it from scratch, and knows made-up fables and nothing else. Try:
  Tell me a tale about a goat in winter
  Who found the bell?"""


@dataclass(frozen=True)
class Chat:
    """Talk with a model in the terminal; through a pipe, each line is a message and is answered on standard output."""

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="[MODEL]", help=f"{MODEL[:-1]}; without one, the storyteller of llucid's own."),
    ] = ""
    system: str = ""
    """Tells the model how to behave, before the first message."""
    max_tokens: int = 1024
    """Tokens of an answer at most."""
    temperature: Temperature = 0.8
    top_k: TopK = None
    top_p: TopP = 0.95
    min_p: MinP = None
    seed: Optional[int] = None
    """The same seed and the same messages, the same answers."""
    format: Optional[str] = None
    """llama2, llama3, plain (none at all), or one of the model's own templates by name; its own when left out."""
    tokenizer: OtherTokenizer = None
    dtype: Dtype = None
    quantize: Quantize = None
    device: Device = None

    def run(self) -> None:
        """Talks until the user leaves or the input ends."""
        from llucid.chat import STORYTELLER
        from llucid.chat.terminal import talk
        from llucid.generation import Sampling

        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        talk(
            opened(self.model or str(STORYTELLER), self.tokenizer, self.dtype, self.device, self.quantize),
            self.model or "the storyteller",
            hint="" if self.model else HINT,
            system=self.system,
            format=self.format,
            sampling=sampling,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Predict:
    """Show the likeliest next tokens and their probabilities."""

    model: Annotated[Model, tyro.conf.arg(help=f"{MODEL[:-1]}; with --toy, the text.")]
    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[TEXT]")] = ""
    """Text to go on from; - reads it from standard input."""
    top_k: int = 5
    """How many tokens to show."""
    json: bool = False
    """Print JSON instead of a table."""
    toy: bool = False
    """Build a vocabulary from the words of the text, an untrained model, and its prediction, step by step."""
    tokenizer: OtherTokenizer = None
    dtype: Dtype = None
    quantize: Quantize = None
    device: Device = None

    def run(self) -> None:
        """Prints a table with bars, or JSON."""
        from rich.console import Console

        from llucid.generation import predict

        if self.toy:
            if self.json:
                raise LlucidError("--json: --toy explains, and in words alone; leave one of them out")
            if self.text:
                raise LlucidError(f"--toy: needs no model, only a text, as in: llucid predict --toy {self.text!r}")
            from llucid.generation.toy import show_toy

            return show_toy(self.model, self.top_k, Console())
        text = text_of(self.text)
        predictions = predict(
            opened(self.model, self.tokenizer, self.dtype, self.device, self.quantize), text, self.top_k
        )
        if self.json:
            print(json.dumps([prediction._asdict() for prediction in predictions], ensure_ascii=False, indent=2))
        else:
            from llucid.generation.predictions import table

            Console().print(table(predictions))
        return None


@dataclass(frozen=True)
class Ladder:
    """Climb from a bigram table to a Llama, one idea a rung: trained alike, measured, and said to help or not."""

    steps: int = 800
    """Optimizer steps of each rung."""
    corpus: Annotated[tuple[str, ...], UNSET] = ()
    """shakespeare, fables, or paths of text (shakespeare, or fables where it cannot be had, unless given)."""
    rungs: Annotated[tuple[str, ...], UNSET] = ()
    """Numbers, ranges like 4-6, or names like rope (all ten, unless given)."""
    out: Optional[str] = None
    """Folder for ladder.png, metrics.json and samples.txt (runs/ladder, or the first free one like it)."""
    seed: int = 0
    """The first of the seeds."""
    seeds: int = 2
    """How many times each rung is trained: what differs between seeds is noise, and no change within it counts."""

    def run(self) -> None:
        """Climbs, then says where everything is."""
        from rich.console import Console

        from llucid.ladder.run import run_ladder

        console = Console(soft_wrap=not sys.stdout.isatty())
        out = run_ladder(
            console,
            corpus=self.corpus,
            steps=self.steps,
            rungs=self.rungs,
            seed=self.seed,
            seeds=self.seeds,
            out=self.out,
        )
        if out:
            console.print(f"the picture is {out / 'ladder.png'}; what each rung writes, {out / 'samples.txt'}")


@dataclass(frozen=True)
class Info:
    """Tell what a model is, from its headers: format, numbers, parameters, bytes, tokenizer."""

    model: Model

    def run(self) -> None:
        """Prints one fact a line."""
        from llucid.checkpoints import describe

        facts = describe(self.model)
        width = max(map(len, facts))
        for name, fact in facts.items():
            print(f"{name:<{width}}  {fact}")


@dataclass(frozen=True)
class Convert:
    """Write a model in another format; says what the format cannot hold."""

    model: Model
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to make, for huggingface and meta, or file, for llama2c and gguf."""
    to: Literal["huggingface", "meta", "llama2c", "gguf"]
    """Format to write."""
    version: Optional[Literal[0, 1, 2]] = None
    """Of llama2c's format: 0 is what its run.c reads (unless given), 1 has a better header, 2 is runq.c's int8."""
    tokenizer: OtherTokenizer = None
    dtype: Annotated[Optional[str], tyro.conf.arg(metavar="{float32,bfloat16,float16,q8_0,q4_0}")] = None
    """Write in this precision instead of the file's own; q8_0 and q4_0 are of gguf."""

    def run(self) -> None:
        """Writes, with a bar if it takes longer than two seconds, and tells what opening it will have to guess."""
        from llucid.checkpoints import convert, describe
        from llucid.checkpoints.gguf_file import read_head
        from llucid.tokenizers.gguf_vocabulary import WHOLE_JSON

        with bar() as progress:
            guessed = convert(
                self.model,
                self.out,
                self.to,
                version=self.version,
                tokenizer=self.tokenizer,
                dtype=self.dtype,
                progress=progress,
            )
        print(f"the model is in {self.out}")
        before, after = (describe(path)["dtype"] for path in (self.model, self.out))
        packed = [dtype for dtype in before.split(", ") if dtype.startswith(("Q", "int"))]
        if packed and self.dtype is None and "int" not in after:
            print(f"what was {' and '.join(packed)} is {after} now; --dtype names another", file=sys.stderr)
        if self.to == "gguf" and WHOLE_JSON in read_head(Path(self.out)).fields:
            print(
                "llama.cpp puts a space before some texts where this tokenizer puts none, as before one that begins "
                "with a space, and makes other ids of these; llucid does not, since the tokenizer.json is inside, too",
                file=sys.stderr,
            )
        for name, (before, after) in guessed.items():
            print(f"{self.to} does not hold {name}: it was {before} and will be read as {after}", file=sys.stderr)


@dataclass(frozen=True)
class Bench:
    """Measure loading, prefill, decoding and training here, beside what this machine could do at most."""

    model: Annotated[tyro.conf.Positional[Optional[str]], tyro.conf.arg(metavar="[MODEL]")] = None
    """Path of a model; random weights of --preset, unless given."""
    preset: str = "stories42M"  # large enough for the memory to matter, and done in half a minute
    """Size of the random model."""
    json: bool = False
    """Print JSON instead of a table."""
    dtype: Optional[Literal["float32", "bfloat16", "float16"]] = None
    """Compute in this precision instead of the file's own (float32 for a random model)."""
    device: Device = None

    def run(self) -> None:
        """Prints a table of what was measured, until Ctrl-C if there is one, or JSON."""
        from rich.console import Console

        from llucid import bench
        from llucid.checkpoints import choose_device, choose_dtype

        device, rows = choose_device(self.device), list[bench.Row]()
        with Console(stderr=True).status("starting") as status:
            try:
                for row in bench.measure(self.model, self.preset, device, choose_dtype(self.dtype), status.update):
                    rows.append(row)
            except KeyboardInterrupt:
                if self.json or not rows:
                    raise
        name, on = self.model or f"random weights, {self.preset}", bench.machine(device)
        if self.json:
            print(json.dumps({"model": name, "machine": on, "rows": [row.json() for row in rows]}, indent=2))
        else:
            Console().print(f"{name} on {on}", bench.table(rows), sep="\n", highlight=False)


@contextlib.contextmanager
def bar() -> Generator[Callable[[int, int], None]]:
    """What shows on standard error how much is done of how much, once that has taken two seconds."""
    from rich.console import Console
    from rich.progress import Progress

    console, start = Console(stderr=True), time.monotonic()
    shown = Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = shown.add_task("writing")

    def tell(done: int, total: int) -> None:
        if time.monotonic() - start > 2:
            shown.start()
            shown.update(task, completed=done, total=total, refresh=True)

    try:
        yield tell
    finally:
        if shown.live.is_started:
            shown.stop()


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Ladder, tyro.conf.subcommand("ladder")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def opened(
    path: str,
    tokenizer: str | None,
    dtype: str | None,
    device: str | None,
    quantize: Literal["int8", "int4"] | None,
) -> "checkpoints.Model":
    """The model at `path`; what its file has in 8 or 4 bits stays so, unless a dtype is named."""
    from llucid.checkpoints import load

    kept = quantize or (None if dtype else "file")
    return load(path, dtype=dtype, device=device, tokenizer=tokenizer, quantize=kept, mapped=True)


def text_of(given: str) -> str:
    """The text that was given; for "-", all of standard input but the line break at its end."""
    if given != "-":
        return given
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
        return lines.read().removesuffix("\n")


def main() -> None:
    """Runs the command line; bad input ends with one line on standard error and status 2."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.isatty():
        sys.stdout.reconfigure(errors="replace")  # a question mark where a terminal has no such letter
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        if arguments == ["--version"]:
            from importlib.metadata import version

            return print("llucid", version("llucid"))
        command = parse(arguments or ["--help"], Command)
        keep_freed()
        command.run()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        print(f"error: {letter!a} is no letter of {error.encoding}; set PYTHONIOENCODING=utf-8", file=sys.stderr)
        sys.exit(2)
    except (LlucidError, OSError, MemoryError, RuntimeError, ImportError) as error:
        # PyTorch's and JAX's own errors of memory are RuntimeErrors; that of a library that finds none, an ImportError.
        full = re.search("allocate memory|out of memory|overflow|failed to map segment", str(error), re.I)
        memory = isinstance(error, MemoryError) or (full and isinstance(error, RuntimeError | ImportError))
        if debug or (isinstance(error, RuntimeError | ImportError) and not memory):
            raise
        print(f"error: {'there is not enough memory' if memory else one_line(error)}", file=sys.stderr)
        sys.exit(2)
