"""Training in PyTorch, on one device."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.training.backend import Batch
from llucid.training.optimizer import make_optimizers, optimizer_tensors, restore_optimizers
from llucid.training.run import Progress, read_state, write_state
from llucid.training.settings import Settings
from llucid.training.step import loss_sum, mean_loss, train_step
from llucid.weights import Weights, assemble, named_leaves, tree_map


class State(NamedTuple):
    """What training changes, all of it in place."""

    weights: Weights
    optimizers: list[Optimizer]
    dropout: torch.Generator


class TorchBackend:
    """The `Backend` that calls `step.train_step`."""

    def __init__(self, config: Config, settings: Settings, device: torch.device) -> None:
        self.config, self.settings, self.device = config, settings, device
        self.dtype: torch.dtype = getattr(torch, str(settings.dtype))
        self.loss_function = torch.compile(loss_sum) if settings.compile else loss_sum

    def start(self, weights: Weights) -> State:
        weights = tree_map(lambda leaf: leaf.to(self.device).requires_grad_(), weights)
        dropout = torch.Generator(self.device).manual_seed(self.settings.seed)
        return State(weights, make_optimizers(weights, self.settings), dropout)

    def step(self, batch: Batch, state: State, rate: float) -> tuple[Tensor, State]:
        inputs, targets = batch
        with _compile_errors() if self.settings.compile else nullcontext():
            loss = train_step(
                inputs.to(self.device),
                targets.to(self.device),
                state.weights,
                self.config,
                state.optimizers,
                share=rate,
                parts=self.settings.accumulate,
                clip=self.settings.clip,
                dtype=self.dtype,
                dropout=state.dropout,
                loss_function=self.loss_function,
            )
        return loss, state

    def evaluate(self, batches: Iterable[Batch], state: State) -> float:
        return mean_loss(batches, state.weights, self.config, self.dtype)

    def weights(self, state: State) -> Weights:
        return tree_map(Tensor.detach, state.weights)

    def save(self, folder: Path, state: State, progress: Progress) -> None:
        tensors = {f"weights.{path}": leaf for path, leaf in named_leaves(state.weights)}
        tensors |= optimizer_tensors(state.optimizers) | {"dropout": state.dropout.get_state()}
        write_state(folder, tensors, progress)

    def load(self, folder: Path) -> tuple[State, Progress]:
        with read_state(folder) as (tensors, progress):
            state = self.start(assemble(self.config, lambda path, shape: tensors[f"weights.{path}"].view(shape)))
            restore_optimizers(state.optimizers, tensors)
            if "dropout" in tensors:  # JAX has no dropout
                state.dropout.set_state(tensors["dropout"])
        return state, progress


@contextmanager
def _compile_errors() -> Generator[None]:
    """Raises LlucidError if torch.compile fails inside, as without a C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException  # slow; torch.compile imports it too

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]  # a compiler's command and output follow
        raise LlucidError(f"compile=True: torch.compile failed ({reason}); use compile=False") from error
