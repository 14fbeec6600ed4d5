"""The optimizers, which parameters each of them trains, and the schedule of the learning rate."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import AdamW, Optimizer

from llucid.training.muon import Muon
from llucid.training.settings import Settings
from llucid.weights import is_hidden_matrix, named_leaves


def learning_rate(progress: float, warmup: float, final: float) -> float:
    """The share of the peak at `progress` (0 at the start, 1 at the end): a linear rise, then a linear fall.

    Not 0 at the first step, which would waste it. Linear decay: Defazio et al. 2023, "Optimal Linear Decay".
    """
    rising = (progress + 1e-3) / (warmup + 1e-3)
    falling = final + (1 - final) * (1 - progress) / (1 - warmup)
    return min(rising, falling)


def make_optimizers(
    weights: object, settings: Settings, is_hidden: Callable[[str, Sequence[int]], bool] = is_hidden_matrix
) -> list[Optimizer]:
    """The optimizers of one run, with each group's peak learning rate as its `initial_lr`.

    The arrays for which `is_hidden(path, shape)` is true decay; embeddings and gains do not. "adamw" trains everything
    with AdamW (Loshchilov & Hutter 2019); "muon" trains the hidden matrices with Muon (Jordan et al. 2024), which
    orthogonalises their updates. A tied embedding is one leaf, so one parameter.
    """
    named = list(named_leaves(weights))
    matrices = [leaf for path, leaf in named if is_hidden(path, leaf.shape)]
    others = [leaf for path, leaf in named if not is_hidden(path, leaf.shape)]
    adam_rate, muon_rate = float(settings.learning_rate or 0), float(settings.muon_learning_rate or 0)
    decaying = {"params": matrices, "weight_decay": settings.weight_decay}
    rest = {"params": others, "lr": adam_rate, "weight_decay": 0.0}
    if settings.optimizer == "adamw":
        groups = [decaying | {"lr": adam_rate}, rest]
        optimizers: list[Optimizer] = [AdamW(groups, betas=(0.9, 0.95), fused=True)]
    else:
        muon = Muon([decaying | {"lr": muon_rate}], momentum=0.95)
        optimizers = [muon, AdamW([rest], betas=(0.9, 0.95), fused=True)]
    for group in (group for each in optimizers for group in each.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def optimizer_tensors(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """What the optimizers remember, by names like "optimizer.0.7.momentum"."""
    return {
        f"optimizer.{number}.{parameter}.{name}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, memory in optimizer.state_dict()["state"].items()
        for name, value in memory.items()
    }


def restore_optimizers(optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; ignores tensors with other names.

    Raises KeyError or RuntimeError if a tensor of an optimizer that has any is missing or has another size.
    """
    for number, optimizer in enumerate(optimizers):
        if not any(path.startswith(f"optimizer.{number}.") for path in tensors):  # it has not made a step
            continue
        names = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
        parameters: list[Tensor] = [leaf for group in optimizer.param_groups for leaf in group["params"]]
        state = {
            parameter: {
                name: tensors[f"optimizer.{number}.{parameter}.{name}"].view(() if name == "step" else leaf.shape)
                for name in names
            }
            for parameter, leaf in enumerate(parameters)
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
