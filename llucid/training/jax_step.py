"""Training in JAX: a step equal to that of `step.py` up to rounding, and a memory from which either can go on.

A value in, a value out: weights and memory (what AdamW remembers) come back changed and nothing else is. The numbers
are the same `Settings`; batches, the share of the peak learning rate and all that is not arithmetic stay in the loop.
"""

from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int

from llucid.config import Config
from llucid.errors import LlucidError
from llucid.llama_jax import from_torch, loss, to_torch
from llucid.training.backend import Backend
from llucid.training.settings import Settings
from llucid.weights import Weights, assemble, leaves, named_leaves, to, tree_map

try:
    import jax
    import jax.numpy as jnp
    import optax
    from jax import Array
except ImportError as error:
    raise LlucidError("--backend jax needs JAX and Optax, which are not installed; pip install llucid[jax]") from error

Memory: TypeAlias = Any
"""What the optimizer remembers, in Optax's nest of states: Adam's two averages are trees like the weights."""


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Gradients no longer than `max_norm`, as one vector of all: g · min(1, max_norm / (|g| + 1e-6)).

    Pascanu et al. 2013, algorithm 1. The 1e-6 is PyTorch's, and Optax's own has none.
    """

    def update(gradients: Any, weights: Any = None) -> Any:
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves(gradients)))
        factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return tree_map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(update)


def decaying(weights: Weights) -> Weights:
    """True where weights decay: the matrices of the blocks. Embeddings and gains do not."""
    still = tree_map(lambda leaf: False, weights)
    return still._replace(blocks=tree_map(lambda leaf: leaf.ndim == 2, weights.blocks))


def make_optimizer(settings: Settings) -> Any:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) with gradients clipped; to be multiplied by −rate."""
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
    """One step on one batch at `share` of the peak learning rate: (the loss before it, weights, memory).

    The loss is in nats per token. Weights are rounded to `settings.dtype` inside of what is differentiated, so that
    gradients arrive in float32.
    """

    def rounded_loss(weights: Weights) -> Float[Array, ""]:
        dtype = settings.dtype
        return loss(inputs, targets, tree_map(lambda leaf: leaf.astype(dtype or leaf.dtype), weights), config)

    value, gradients = jax.value_and_grad(rounded_loss)(weights)
    directions, memory = make_optimizer(settings).update(gradients, memory, weights)
    rate = float(settings.learning_rate or 0) * share
    return value, tree_map(lambda leaf, direction: leaf - rate * direction, weights, directions), memory


def _numbers(config: Config) -> dict[str, int]:
    """The number that `optimizer.make_optimizers` gives each parameter, by path: what decays, then what does not."""
    paths = assemble(config, lambda path, shape: path)
    moved = [path for block in paths.blocks for path in (*block.attention, *block.feed_forward)]
    still = [path for path in leaves(paths) if path not in moved]
    return {path: number for number, path in enumerate(moved + still)}


def memory_tensors(memory: Memory, config: Config) -> dict[str, torch.Tensor]:
    """The memory as `optimizer.optimizer_tensors` gives that of PyTorch's AdamW: same names, so either goes on."""
    adam, numbers = memory[1], _numbers(config)
    tensors = {f"optimizer.0.{number}.step": torch.tensor(float(adam.count)) for number in numbers.values()}
    for name, tree in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
        for path, leaf in named_leaves(to_torch(tree)):
            tensors[f"optimizer.0.{numbers[path]}.{name}"] = leaf
    return tensors


def restore_memory(tensors: dict[str, torch.Tensor], config: Config) -> Memory:
    """The inverse of `memory_tensors`, also of what PyTorch's AdamW remembers."""
    numbers = _numbers(config)

    def average(name: str) -> Any:
        return from_torch(assemble(config, lambda path, shape: tensors[f"optimizer.0.{numbers[path]}.{name}"]))

    count = jnp.array(int(tensors["optimizer.0.0.step"]), jnp.int32)
    adam = optax.ScaleByAdamState(count, mu=average("exp_avg"), nu=average("exp_avg_sq"))
    return optax.EmptyState(), adam, optax.MaskedState(inner_state=optax.EmptyState())


def fastest_device() -> torch.device:
    """The GPU if both libraries find it, since PyTorch measures what JAX trains; else the CPU."""
    both = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if both else "cpu")


def open_backend(config: Config, settings: Settings, device: torch.device) -> Backend:
    """JAX for the training loop. Raises LlucidError for settings that only PyTorch trains by, or another's device."""
    if settings.optimizer != "adamw":
        raise LlucidError(f"--backend jax has no --optimizer {settings.optimizer}; use --optimizer adamw")
    if settings.accumulate != 1:
        raise LlucidError(f"--backend jax has no --accumulate {settings.accumulate}; use a smaller --batch")
    if settings.compile:
        raise LlucidError("--backend jax has no --compile: its steps are compiled in any case")
    if config.dropout != 0:
        raise LlucidError(f"--backend jax has no --model.dropout {config.dropout}; use --model.dropout 0")
    try:
        place = jax.devices(device.type)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise LlucidError(f"--device {device}: JAX finds no such device, only {jax.devices()}") from error

    def start(weights: Weights, remembered: dict[str, torch.Tensor]) -> tuple[Weights, Memory]:
        theirs = from_torch(weights)
        memory = restore_memory(remembered, config) if remembered else make_optimizer(settings).init(theirs)
        return jax.device_put((theirs, memory), place)

    def step(
        inputs: torch.Tensor, targets: torch.Tensor, weights: Weights, memory: Memory, share: float
    ) -> tuple[torch.Tensor, Weights, Memory]:
        value, weights, memory = train_step(inputs.numpy(), targets.numpy(), weights, memory, config, settings, share)
        return torch.tensor(float(value)), weights, memory  # waits for the loss, so that the clock is true

    return Backend(
        start,
        step,
        weights=lambda weights: to(to_torch(weights), device=device),
        memory=lambda memory: memory_tensors(memory, config),
    )
