"""The contract between the training loop and the library that computes: PyTorch, JAX, on one process or on many."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from llucid.training.run import Progress
from llucid.weights import Weights

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, Int[rows seq] on the CPU; targets of −100 do not count."""


@runtime_checkable
class Backend(Protocol):
    """What training, evaluating and saving ask of a library.

    Its `state` is a value of its own kind: the weights and what the optimizer remembers. A step may change it in place.
    """

    def start(self, weights: Weights) -> Any:
        """The state before the first step, from PyTorch's float32 weights on the CPU."""
        ...

    def step(self, batch: Batch, state: Any, rate: float) -> tuple[Tensor, Any]:
        """One step at `rate` times the peak learning rate: (the loss before it in nats per token, the new state)."""
        ...

    def evaluate(self, batches: Iterable[Batch], state: Any) -> float:
        """The mean loss in nats per token over all batches."""
        ...

    def weights(self, state: Any) -> Weights:
        """The whole weights as PyTorch's tensors, to write them and to generate with them."""
        ...

    def save(self, folder: Path, state: Any, progress: Progress) -> None:
        """Replaces what is kept in `folder`, a run's `state/`, atomically."""
        ...

    def load(self, folder: Path) -> tuple[Any, Progress]:
        """What `save` of any backend wrote: (state, progress). Raises LlucidError for a damaged state."""
        ...
