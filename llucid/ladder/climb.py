"""The ladder, climbed: every rung trained on the same batches, in the same way, as many steps, and measured alike."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from llucid.config import Config
from llucid.corpora import Corpus, open_corpus
from llucid.corpora.tokens import make_tokenizer, tokenise, training_batch, validation_batches
from llucid.errors import LlucidError
from llucid.files import atomic_file, write_text_atomically
from llucid.generation.sampling import draw, generator, temperature
from llucid.ladder import RUNGS, Rung
from llucid.ladder.checks import check
from llucid.ladder.picture import draw_ladder
from llucid.ladder.report import Report
from llucid.ladder.verdicts import Result, noise, verdicts
from llucid.tokenizers import Tokenizer
from llucid.training.interrupts import interruption
from llucid.training.optimizer import learning_rate, optimizers_for
from llucid.training.report import progress_of
from llucid.training.run import free_name
from llucid.training.settings import Settings
from llucid.training.step import train_step
from llucid.weights import count, leaves, named_leaves

SIZES = Config(dim=96, layers=3, heads=4, kv_heads=2, head_dim=24, ffn_dim=256, vocab_size=1, context=64)
"""The numbers of the last rung; the vocabulary is the corpus's."""
ROWS = 16
"""Windows in a step."""
RECIPE = Settings(learning_rate=0.02, muon_learning_rate=0.02, warmup=0.02, final=0.0)
"""How every rung is trained: `llucid train`'s way, at rates that suit the small."""
EDGES = ("table", "embedding", "position", "output")
"""The arrays that stand at the edge of a network, whose rows are looked up or scored against: AdamW trains them."""
MEASURED = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
"""The shares of the steps after which the loss is measured on the way."""
PART = 6
"""For the curve, one in so many of the validation windows is measured; for the table, each."""
SAMPLE = 300
"""Characters that a rung writes."""

Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What all rungs have in common."""

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    steps: int
    batch: Callable[[int, int], Batch]
    """(seed, step) -> inputs and targets."""
    validation: list[Batch]
    validation_part: list[Batch]
    prompt: str
    """What every rung writes on from: the whole lines of the validation split's first window."""


class Interrupted(Exception):
    """The user wants no more."""


def climb(
    console: Console,
    *,
    corpus: Sequence[str] = (),
    steps: int = 800,
    rungs: Sequence[str] = (),
    seed: int = 0,
    seeds: int = 2,
    out: str | None = None,
) -> Path | None:
    """Trains the rungs and returns the folder with `ladder.png`, `metrics.json` and `samples.txt`.

    Without a corpus, Tiny Shakespeare, or fables where it cannot be had. Ctrl-C ends the climb and keeps the rungs that
    are complete; None if there is none. Raises LlucidError for bad input.
    """
    if steps < 1 or seeds < 1:
        raise LlucidError(f"--steps {steps} --seeds {seeds}: both must be at least 1")
    if not 0 <= seed < 1 << 63:
        raise LlucidError(f"--seed {seed}: must be at least 0 and less than 2^63")
    chosen = choose(rungs)
    folder = Path(out) if out else free_name("ladder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LlucidError(f"--out {out}: something is there already; name another folder")
    task = prepare(corpus, steps, console)
    results: list[Result] = []
    report = Report(console, task.corpus.name, len(chosen) * seeds * steps)
    with interruption() as interrupted, report.live():
        try:
            for rung in chosen:
                results.append(train_rung(rung, task, range(seed, seed + seeds), report, interrupted))
                write_files(folder, task, results)
        except Interrupted:
            pass
    if not results:
        console.print("stopped before a rung was complete; nothing was written", highlight=False)
        return None
    if len(results) < len(chosen):
        console.print(f"stopped after {len(results)} of {len(chosen)} rungs", highlight=False)
    report.summary()
    with atomic_file(folder / "ladder.png") as temporary:
        draw_ladder(results, temporary, title(task), task.corpus.floor)
    return folder


def choose(words: Sequence[str]) -> list[Rung]:
    """The rungs that numbers ("4"), ranges ("4-6") and names ("rope") name, from the lowest; all, if there are none."""
    chosen: set[int] = set()
    for word in words:
        first, _, last = word.partition("-")
        named = [rung.number for rung in RUNGS if rung.name.lower() == word.lower()]
        if first.isdecimal() and (last or first).isdecimal():
            named = [rung.number for rung in RUNGS if int(first) <= rung.number <= int(last or first)]
        if not named:
            names = ", ".join(f"{rung.number} {rung.name}" for rung in RUNGS)
            raise LlucidError(f"--rungs {word}: no such rung; expected numbers, ranges like 4-6, or names, of: {names}")
        chosen.update(named)
    return [rung for rung in RUNGS if rung.number in chosen or not words]


def prepare(names: Sequence[str], steps: int, console: Console) -> Task:
    """Opens the corpus and reads what every rung is measured on."""
    try:
        corpus = open_corpus(names or ["shakespeare"])
    except LlucidError:
        if names:
            raise
        console.print("Tiny Shakespeare cannot be had here: climbing on fables, which llucid makes up", highlight=False)
        corpus = open_corpus(["fables"])
    tokenizer = make_tokenizer("characters", corpus)
    with progress_of("reading", console, 2 * corpus.size()) as heard:
        training, validation = (tokenise(corpus, tokenizer, split, heard) for split in ("train", "validation"))
    config = dataclasses.replace(SIZES, vocab_size=tokenizer.vocab_size)
    if tokenizer.vocab_size < 2 or min(training.length, validation.length) < 2 * config.context:
        raise LlucidError(
            f"--corpus {' '.join(names)}: its splits have {training.length} and {validation.length} characters, "
            f"{tokenizer.vocab_size} of them different; the ladder needs {2 * config.context} in each, and 2 different"
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
    """What all the curves have in common."""
    characters = task.steps * ROWS * task.config.context
    told = f"{task.corpus.name}: the same {characters:,} characters for each rung, in {task.steps:,} steps"
    return f"{told}; curves: a sixth of the validation windows, numbers: all of them"


def train_rung(rung: Rung, task: Task, seeds: range, report: Report, interrupted: Callable[[], bool]) -> Result:
    """Checks a rung, trains it from each seed, and lets it write. Raises Interrupted."""
    begun = time.perf_counter()
    found = check(rung, task.config, seeds[0])
    report.begins(rung, found)
    curves: list[tuple[tuple[int, float], ...]] = []
    losses: list[float] = []
    sample, parameters = "", 0
    for seed in seeds:
        weights = rung.init(task.config, seed)
        curves.append(train(rung, weights, task, seed, report, interrupted))
        losses.append(measure(rung, weights, task.config, task.validation))
        if not sample:
            sample, parameters = write(rung, weights, task, seed), count(weights)
    seconds = time.perf_counter() - begun
    result = Result(rung, parameters, not found[-1].holds, tuple(curves), tuple(losses), seconds, sample)
    report.ends(result)
    return result


def train(
    rung: Rung, weights: Any, task: Task, seed: int, report: Report, interrupted: Callable[[], bool]
) -> tuple[tuple[int, float], ...]:
    """Trains the weights and returns the curve of the validation loss. Raises Interrupted."""

    def loss_sum(inputs: Tensor, targets: Tensor, weights: Any, config: Config, *_: object) -> Tensor:
        return rung.loss(inputs, targets, weights, config)

    for leaf in leaves(weights):
        leaf.requires_grad_()
    optimizers = make_optimizers(weights)
    curve = [(0, measure(rung, weights, task.config, task.validation_part))]
    points = {max(1, round(share * task.steps)) for share in MEASURED}
    for step in range(task.steps):
        if interrupted():
            raise Interrupted
        rate = learning_rate(step / task.steps, RECIPE.warmup, RECIPE.final)
        inputs, targets = task.batch(seed, step)
        train_step(inputs, targets, weights, task.config, optimizers, share=rate, loss_function=loss_sum)
        if step + 1 in points:
            curve.append((step + 1, measure(rung, weights, task.config, task.validation_part)))
        report.step(rung, seed, step + 1, curve[-1][1])
    return tuple(curve)


def make_optimizers(weights: Any) -> list[Optimizer]:
    """Muon for the matrices within, AdamW for what stands at the edges and for gains, as `llucid train` does it."""
    named = list(named_leaves(weights))
    within = [leaf for path, leaf in named if leaf.ndim == 2 and path not in EDGES]
    others = [leaf for path, leaf in named if leaf.ndim != 2 or path in EDGES]
    return optimizers_for(within, others, RECIPE)


@torch.no_grad()
def measure(rung: Rung, weights: Any, config: Config, batches: list[Batch]) -> float:
    """The mean of −log p over all targets, in nats per character."""
    total = sum(rung.loss(inputs, targets, weights, config).item() for inputs, targets in batches)
    return total / sum(targets.numel() for _, targets in batches)


@torch.no_grad()
def write(rung: Rung, weights: Any, task: Task, seed: int) -> str:
    """What the rung writes after the prompt, at temperature 0.8."""
    ids, numbers = task.tokenizer.encode(task.prompt), [generator(seed)]
    for _ in range(SAMPLE):
        scores = rung.logits(torch.tensor([ids[-task.config.context :]]), weights, task.config)[:, -1]
        ids.append(int(draw(temperature(scores, 0.8), numbers)))
    return task.tokenizer.decode(ids[-SAMPLE:])


def write_files(folder: Path, task: Task, results: list[Result]) -> None:
    """Replaces `metrics.json` and `samples.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "rung": result.rung.number,
            "name": result.rung.name,
            "change": result.rung.change,
            "parameters": result.parameters,
            "sees_the_future": result.peeks,
            "loss": result.loss,
            "losses": result.losses,
            "against": verdict.against.number if verdict.against else None,
            "difference": verdict.change,
            "verdict": verdict.kind,
            "seconds": round(result.seconds, 2),
            "curves": result.curves,
        }
        for result, verdict in zip(results, verdicts(results), strict=True)
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
    told = f"Each rung goes on from {task.prompt!r}"
    write_text_atomically(folder / "samples.txt", f"\n\n{'-' * 60}\n".join([told, *texts]) + "\n")
