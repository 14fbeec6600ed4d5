"""Training in JAX: a step equal to that of `step.py` up to rounding, and a saved state that either library loads."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.llama_jax import from_torch, loss, to_torch
from llucid.training.backend import Batch
from llucid.training.run import Progress, read_state, write_state
from llucid.training.settings import Settings
from llucid.training.step import mean_loss
from llucid.weights import Weights, assemble, is_hidden_matrix, leaves, named_leaves, shapes, to, tree_map

try:
    import jax
    import jax.numpy as jnp
    import optax
    from jax import Array
except ImportError as error:
    raise LlucidError("backend=jax needs JAX and Optax, which are not installed; pip install llucid[jax]") from error

Memory: TypeAlias = Any
"""Optax's states of the optimizer; Adam's two averages are trees like the weights."""


class State(NamedTuple):
    """What a step takes and returns."""

    weights: Weights
    memory: Memory


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """All gradients as one vector, scaled to at most `max_norm`: g · min(1, max_norm / (|g| + 1e-6)).

    Pascanu et al. 2013, algorithm 1. PyTorch adds the 1e-6; Optax's own clipping does not.
    """

    def update(gradients: Any, weights: Any = None) -> Any:
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves(gradients)))
        factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return tree_map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(update)


def decaying(weights: Weights) -> Weights:
    """True for the weights that decay: the matrices inside the blocks."""
    flags = iter([is_hidden_matrix(path, leaf.shape) for path, leaf in named_leaves(weights)])
    return tree_map(lambda leaf: next(flags), weights)


def make_optimizer(settings: Settings) -> Any:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) with clipped gradients; its updates still lack the factor −rate."""
    return optax.chain(
        clip_by_global_norm(settings.clip),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.add_decayed_weights(settings.weight_decay, mask=decaying),
    )


@partial(jax.jit, static_argnames=("config", "settings"))
def train_step(
    inputs: Int[Array, "rows seq"],
    targets: Int[Array, "rows seq"],
    weights: Weights,
    memory: Memory,
    config: Config,
    settings: Settings,
    share: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], Weights, Memory]:
    """One step on one batch at `share` times the peak learning rate: (the loss before it, weights, memory).

    The loss is in nats per token. The weights are rounded to `settings.dtype` inside the differentiated function, so
    that the gradients are float32.
    """

    def rounded_loss(weights: Weights) -> Float[Array, ""]:
        dtype = settings.dtype
        return loss(inputs, targets, tree_map(lambda leaf: leaf.astype(dtype or leaf.dtype), weights), config)

    value, gradients = jax.value_and_grad(rounded_loss)(weights)
    directions, memory = make_optimizer(settings).update(gradients, memory, weights)
    rate = float(settings.learning_rate or 0) * share
    return value, tree_map(lambda leaf, direction: leaf - rate * direction, weights, directions), memory


def _numbers(config: Config) -> dict[str, int]:
    """The number that `optimizer.make_optimizers` gives each parameter: first those that decay, then the others."""
    paths = shapes(config)
    decay = [path for path in paths if is_hidden_matrix(path, paths[path])]
    return {path: number for number, path in enumerate([*decay, *(path for path in paths if path not in decay)])}


def memory_tensors(memory: Memory, config: Config) -> dict[str, torch.Tensor]:
    """The memory as tensors with the names that `optimizer.optimizer_tensors` gives to those of PyTorch's AdamW."""
    adam, numbers = memory[1], _numbers(config)
    steps = torch.tensor(float(adam.count), dtype=torch.float32)
    tensors = {f"optimizer.0.{number}.step": steps.clone() for number in numbers.values()}
    for name, tree in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
        for path, leaf in named_leaves(to_torch(tree)):
            tensors[f"optimizer.0.{numbers[path]}.{name}"] = leaf
    return tensors


def restore_memory(tensors: Mapping[str, torch.Tensor], config: Config) -> Memory:
    """The inverse of `memory_tensors`, also for the tensors of PyTorch's AdamW."""
    numbers = _numbers(config)

    def average(name: str) -> Any:
        return from_torch(
            assemble(config, lambda path, shape: tensors[f"optimizer.0.{numbers[path]}.{name}"].view(shape))
        )

    count = jnp.array(int(tensors["optimizer.0.0.step"]), jnp.int32)
    adam = optax.ScaleByAdamState(count, mu=average("exp_avg"), nu=average("exp_avg_sq"))
    return optax.EmptyState(), adam, optax.MaskedState(inner_state=optax.EmptyState())


def fastest_device() -> torch.device:
    """The GPU if both libraries find it, since PyTorch evaluates what JAX trains; else the CPU."""
    both = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if both else "cpu")


class JaxBackend:
    """The `Backend` that calls `train_step`. Raises LlucidError for settings and devices that JAX does not have."""

    def __init__(self, config: Config, settings: Settings, device: torch.device) -> None:
        if settings.optimizer != "adamw":
            raise LlucidError(f"optimizer={settings.optimizer}: backend=jax has only adamw; use optimizer=adamw")
        if settings.accumulate != 1:
            raise LlucidError(f"accumulate={settings.accumulate}: backend=jax has only 1; use a smaller batch=")
        if settings.compile:
            raise LlucidError("compile=True: backend=jax always compiles its steps; use compile=False")
        if config.dropout != 0:
            raise LlucidError(f"model.dropout={config.dropout}: backend=jax has no dropout; use model.dropout=0")
        try:
            self.place = jax.devices(device.type)[device.index or 0]
        except (RuntimeError, IndexError) as error:
            raise LlucidError(f"device={device}: JAX finds no such device, only {jax.devices()}") from error
        self.config, self.settings, self.device = config, settings, device

    def start(self, weights: Weights) -> State:
        theirs = from_torch(weights)
        return State(*jax.device_put((theirs, make_optimizer(self.settings).init(theirs)), self.place))

    def step(self, batch: Batch, state: State, rate: float) -> tuple[torch.Tensor, State]:
        inputs, targets = (part.numpy() for part in batch)
        loss, weights, memory = train_step(inputs, targets, *state, self.config, self.settings, rate)
        return torch.tensor(float(loss), dtype=torch.float32), State(weights, memory)  # float() waits for the step

    def evaluate(self, batches: Iterable[Batch], state: State) -> float:
        return mean_loss(batches, self.weights(state), self.config, getattr(torch, str(self.settings.dtype)))

    def weights(self, state: State) -> Weights:
        return to(to_torch(state.weights), device=self.device)

    def save(self, folder: Path, state: State, progress: Progress) -> None:
        tensors = {f"weights.{path}": leaf for path, leaf in named_leaves(to_torch(state.weights))}
        write_state(folder, tensors | memory_tensors(state.memory, self.config), progress)

    def load(self, folder: Path) -> tuple[State, Progress]:
        with read_state(folder) as (tensors, progress):
            weights = assemble(self.config, lambda path, shape: tensors[f"weights.{path}"].view(shape))
            state = self.start(weights)
            if any(name.startswith("optimizer.") for name in tensors):
                memory = jax.device_put(restore_memory(tensors, self.config), self.place)
                state = state._replace(memory=memory)
        return state, progress
