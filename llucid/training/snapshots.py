"""Copies of the model during training, so that its development can be examined.

    RUN/snapshots/step-1/  RUN/snapshots/step-12/  RUN/snapshots/step-144/  ...

Each is a complete Hugging Face folder (config.json, model.safetensors in bfloat16, the tokenizer), which `llucid.load`
opens. The number is the step after which it was taken, without leading zeros. The steps are logarithmically spaced,
since a model changes most at first. The first is 1, and the last is the end of the run; where the run's length is given
in minutes, its number of steps is an estimate, and the last may be some steps before the end.
"""

import shutil
from pathlib import Path

import torch

from llucid.checkpoints import huggingface
from llucid.files import atomic_folder
from llucid.model import Model
from llucid.weights import to


def snapshots_of(run: Path) -> list[tuple[int, Path]]:
    """The step and the folder of each snapshot of a run, by step."""
    found = [(folder.name.removeprefix("step-"), folder) for folder in run.glob("snapshots/step-*")]
    return sorted((int(step), folder) for step, folder in found if step.isdecimal())


class Snapshots:
    """The snapshots of the run in `out`, at most `count` of them."""

    def __init__(self, out: Path, count: int, step: int) -> None:
        """Removes those after `step`, where the run continues."""
        self.folder, self.count = out / "snapshots", count
        found = snapshots_of(out)
        for _, path in (each for each in found if each[0] > step):
            shutil.rmtree(path)
        self.steps = [number for number, _ in found if number <= step]

    def due(self, step: int, total: float) -> bool:
        """Whether to take one after `step` of about `total` steps."""
        missing = self.count - len(self.steps)
        if missing <= 0:
            return False
        if not self.steps:
            return step >= (1 if self.count > 1 else total)
        last = self.steps[-1]
        return step > last and step >= round(last * max(total / last, 1) ** (1 / missing))

    def take(self, step: int, model: Model) -> None:
        """Writes `model` as the snapshot of `step`."""
        self.folder.mkdir(exist_ok=True)
        copy = to(model.weights, torch.bfloat16, "cpu")
        with atomic_folder(self.folder / f"step-{step}") as unfinished:
            huggingface.write(unfinished, model._replace(weights=copy))
        self.steps.append(step)
