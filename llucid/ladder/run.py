"""Trains every rung on the same batches, with the same recipe and number of steps, and evaluates all alike."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from llucid.config import Config
from llucid.corpora import Corpus, open_corpus
from llucid.corpora.tokens import make_tokenizer, tokenise, training_batch, validation_batches
from llucid.errors import LlucidError
from llucid.files import is_occupied, write_text_atomically
from llucid.generation.sampling import draw, generator, temperature
from llucid.ladder import RUNGS, Rung
from llucid.ladder.checks import check
from llucid.ladder.comparison import Result, compare, noise
from llucid.ladder.plot import ladder_figure
from llucid.ladder.report import Report
from llucid.tokenizers import Tokenizer
from llucid.training.curve import write_png
from llucid.training.interrupts import interruption
from llucid.training.optimizer import learning_rate, make_optimizers
from llucid.training.report import progress_of
from llucid.training.run import free_name, locked
from llucid.training.settings import Settings
from llucid.training.step import mean_loss, train_step
from llucid.weights import count, leaves

SIZES = Config(dim=96, layers=3, heads=4, kv_heads=2, head_dim=24, ffn_dim=256, vocab_size=1, context=64)
"""The sizes of the last rung; the vocabulary comes from the corpus."""
ROWS = 16
"""Windows per step."""
RECIPE = Settings(learning_rate=0.02, muon_learning_rate=0.02, warmup=0.02, final=0.0)
"""The recipe of `llucid train`, with learning rates for models this small (benchmarks/ladder.md)."""
EDGES = ("table", "embedding", "position", "output")
"""Names of the input and output arrays, which AdamW trains; Muon trains the matrices between them."""
EVALUATED = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
"""The curve has a point after each of these fractions of the steps."""
PART = 6
"""The curve uses every sixth validation window, the final loss all of them."""
SAMPLE = 300
"""Characters of the sample that each rung writes."""

Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What all rungs share."""

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    steps: int
    batch: Callable[[int, int], Batch]
    """(seed, step) -> inputs and targets."""
    validation: list[Batch]
    validation_part: list[Batch]
    prompt: str
    """The beginning of every sample: the complete lines of the first validation window."""


class Interrupted(Exception):
    """Ctrl-C was pressed."""


def run_ladder(
    console: Console,
    *,
    corpus: Sequence[str] | None = None,
    steps: int = 800,
    rungs: Sequence[str] = (),
    seed: int = 0,
    seeds: int = 2,
    out: str | None = None,
) -> Path:
    """Trains the rungs and returns the folder with `ladder.png`, `metrics.json` and `samples.txt`.

    The default corpus is Tiny Shakespeare, or fables if that cannot be downloaded. After Ctrl-C or SIGTERM the
    results of the finished rungs are kept, then the signal takes its usual effect. Raises LlucidError for bad input.
    """
    if steps < 1 or seeds < 1:
        raise LlucidError(f"steps={steps} seeds={seeds}: both must be at least 1")
    if not 0 <= seed < 1 << 63:
        raise LlucidError(f"seed={seed}: must be at least 0 and less than 2^63")
    chosen = choose(rungs)
    if out:
        refuse_occupied(Path(out))
    task = prepare(corpus, steps, console)
    folder = make_folder(out)
    results: list[Result] = []
    report = Report(console, task.corpus.name, len(chosen) * seeds * steps)
    with locked(folder):
        refuse_occupied(folder)
        with interruption() as interrupted, report.live():
            try:
                for rung in chosen:
                    results.append(train_rung(rung, task, range(seed, seed + seeds), report, interrupted))
                    write_files(folder, task, results)
            except Interrupted:
                pass
            except BaseException:
                if not results and not out:
                    folder.rmdir()
                raise
        if len(results) < len(chosen):
            console.print(f"stopped after {len(results)} of {len(chosen)} rungs", highlight=False)
        if results:
            report.summary()
            write_png(folder / "ladder.png", ladder_figure, results, title(task), task.corpus.floor)
        elif not out:
            folder.rmdir()
    if len(results) < len(chosen):
        signal.raise_signal(interrupted())
    return folder


def refuse_occupied(out: Path) -> None:
    """Raises LlucidError if there is anything at `out` but an empty folder."""
    if is_occupied(out):
        what = "is not empty" if out.is_dir() else "is a file"
        raise LlucidError(f"out={out}: {what}; choose another folder")


def make_folder(out: str | None) -> Path:
    """Makes the folder `out`, or one of a name that is free, also if other processes take names at the same time."""
    while True:
        folder = Path(out) if out else free_name("ladder")
        try:
            folder.mkdir(parents=True, exist_ok=bool(out))
            return folder
        except FileExistsError:
            if out:
                raise


def choose(words: Sequence[str]) -> list[Rung]:
    """The rungs selected by numbers ("4"), ranges ("4-6") and names ("rope"), the lowest first; all for no words."""
    chosen: set[int] = set()
    for word in words:
        first, _, last = (word if "-" in word else f"{word}-{word}").partition("-")
        named = [rung.number for rung in RUNGS if rung.name.lower() == word.lower()]
        if first.isdecimal() and last.isdecimal():
            named = [rung.number for rung in RUNGS if int(first) <= rung.number <= int(last)]
        if not named:
            names = ", ".join(f"{rung.number} {rung.name}" for rung in RUNGS)
            raise LlucidError(f"rungs={word}: no such rung; expected numbers, ranges like 4-6, or names from: {names}")
        chosen.update(named)
    return [rung for rung in RUNGS if rung.number in chosen or not words]


def prepare(names: Sequence[str] | None, steps: int, console: Console) -> Task:
    try:
        corpus = open_corpus(["shakespeare"] if names is None else names)
    except LlucidError:
        if names is not None:
            raise
        console.print("Tiny Shakespeare is not available: using fables, which llucid generates", highlight=False)
        corpus = open_corpus(["fables"])
    tokenizer = make_tokenizer("characters", corpus)
    with progress_of("reading", console, 2 * corpus.size()) as advance:
        training, validation = (tokenise(corpus, tokenizer, split, advance) for split in ("train", "validation"))
    config = dataclasses.replace(SIZES, vocab_size=tokenizer.vocab_size)
    if tokenizer.vocab_size < 2 or min(training.length, validation.length) < 2 * config.context:
        raise LlucidError(
            f"corpus={' '.join(names or ())}: its splits have {training.length} and {validation.length} characters, "
            f"{tokenizer.vocab_size} different; the ladder needs {2 * config.context} in each, and 2 different ones"
        )
    whole = list(validation_batches(validation, config.context))
    part = [(inputs[::PART], targets[::PART]) for inputs, targets in whole]
    first = tokenizer.decode(whole[0][0][0].tolist())
    return Task(
        config,
        corpus,
        tokenizer,
        steps,
        lambda seed, step: training_batch(training, ROWS, config.context, seed, step),
        whole,
        part,
        first[: first.rfind("\n") + 1] or first,
    )


def title(task: Task) -> str:
    """The subtitle of the plot: what all curves have in common."""
    characters = task.steps * ROWS * task.config.context
    budget = f"{task.corpus.name}: the same {characters:,} characters for each rung, in {task.steps:,} steps"
    windows = sum(len(inputs) for inputs, _ in task.validation)
    return f"{budget}; numbers: {windows:,} validation windows, curves: every sixth of them"


def train_rung(rung: Rung, task: Task, seeds: range, report: Report, interrupted: Callable[[], int]) -> Result:
    """Checks a rung, trains it with each seed, and samples from it. Raises Interrupted."""
    started = time.perf_counter()
    checks = check(rung, task.config, seeds[0])
    report.rung_started(rung, checks)
    curves: list[tuple[tuple[int, float], ...]] = []
    losses: list[float] = []
    sample, parameters = "", 0
    for seed in seeds:
        weights = rung.init(task.config, seed)
        curves.append(train(rung, weights, task, seed, report, interrupted))
        losses.append(mean_loss(task.validation, weights, task.config, loss_function=rung.loss))
        if not sample:
            sample, parameters = write_sample(rung, weights, task, seed), count(weights)
    seconds = time.perf_counter() - started
    result = Result(rung, parameters, not checks[-1].passed, tuple(curves), tuple(losses), seconds, sample)
    report.rung_finished(result)
    return result


def train(
    rung: Rung, weights: Any, task: Task, seed: int, report: Report, interrupted: Callable[[], int]
) -> tuple[tuple[int, float], ...]:
    """Trains the weights and returns the curve of validation losses. Raises Interrupted."""
    evaluate = partial(mean_loss, task.validation_part, weights, task.config, loss_function=rung.loss)
    for leaf in leaves(weights):
        leaf.requires_grad_()
    optimizers = make_optimizers(weights, RECIPE, is_inner)
    curve = [(0, evaluate())]
    points = {max(1, round(share * task.steps)) for share in EVALUATED}
    for step in range(task.steps):
        if interrupted():
            raise Interrupted
        rate = learning_rate(step / task.steps, RECIPE.warmup, RECIPE.final)
        inputs, targets = task.batch(seed, step)
        train_step(inputs, targets, weights, task.config, optimizers, share=rate, loss_function=rung.loss)
        if step + 1 in points:
            curve.append((step + 1, evaluate()))
        report.step(rung, seed, step + 1, curve[-1][1])
    return tuple(curve)


def is_inner(path: str, shape: Sequence[int]) -> bool:
    """Whether Muon trains an array: a matrix between the input and output arrays, which AdamW trains, like gains."""
    return len(shape) == 2 and path not in EDGES


@torch.no_grad()
def write_sample(rung: Rung, weights: Any, task: Task, seed: int) -> str:
    """SAMPLE characters after the prompt, at temperature 0.8."""
    ids, generators = task.tokenizer.encode(task.prompt), [generator(seed)]
    for _ in range(SAMPLE):
        scores = rung.logits(torch.tensor([ids[-task.config.context :]]), weights, task.config)[:, -1]
        ids.append(int(draw(temperature(scores, 0.8), generators)))
    return task.tokenizer.decode(ids[-SAMPLE:])


def write_files(folder: Path, task: Task, results: list[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "rung": result.rung.number,
            "name": result.rung.name,
            "change": result.rung.change,
            "parameters": result.parameters,
            "sees_the_future": result.sees_future,
            "loss": result.loss,
            "losses": result.losses,
            "baseline": comparison.baseline.number if comparison.baseline else None,
            "difference": comparison.change,
            "verdict": comparison.verdict,
            "seconds": round(result.seconds, 2),
            "curves": result.curves,
        }
        for result, comparison in zip(results, compare(results), strict=True)
    ]
    metrics = {
        "corpus": task.corpus.name,
        "floor": task.corpus.floor,
        "steps": task.steps,
        "windows_per_step": ROWS,
        "config": dataclasses.asdict(task.config),
        "noise": noise(results),
        "rungs": rows,
    }
    write_text_atomically(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    texts = [
        f"{result.rung.number} {result.rung.name} ({result.loss:.3f} nats)\n\n{result.sample}" for result in results
    ]
    heading = f"The prompt of every rung: {task.prompt!r}"
    write_text_atomically(folder / "samples.txt", f"\n\n{'-' * 60}\n".join([heading, *texts]) + "\n")
