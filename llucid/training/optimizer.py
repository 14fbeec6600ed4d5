"""Which parameters are trained how, and the learning rate's way up and down."""

from torch import Tensor
from torch.optim import AdamW, Optimizer

from llucid.training.muon import Muon
from llucid.training.settings import Settings
from llucid.weights import Weights, leaves


def learning_rate(progress: float, warmup: float, final: float) -> float:
    """The share of the peak at `progress` (0 at the start, 1 at the end): straight up, then straight down.

    Not 0 at the first step, which would waste it. Linear decay: Defazio et al. 2023, "Optimal Linear Decay".
    """
    rising = (progress + 1e-3) / (warmup + 1e-3)
    falling = final + (1 - final) * (1 - progress) / (1 - warmup)
    return min(rising, falling)


def make_optimizers(weights: Weights, settings: Settings) -> list[Optimizer]:
    """The optimizers of one run, with each group's peak learning rate as its `initial_lr`.

    The matrices of the blocks are `matrices`; a tied embedding is one leaf, hence one parameter.
    """
    matrices = [leaf for block in weights.blocks for leaf in (*block.attention, *block.feed_forward)]
    inside = {id(leaf) for leaf in matrices}
    return optimizers_for(matrices, [leaf for leaf in leaves(weights) if id(leaf) not in inside], settings)


def optimizers_for(matrices: list[Tensor], others: list[Tensor], settings: Settings) -> list[Optimizer]:
    """The optimizers of matrices within a network, which decay, and of its embeddings and gains, which do not.

    "adamw" trains everything by AdamW (Loshchilov & Hutter 2019); with "muon" the matrices are trained by Muon (Jordan
    et al. 2024), which makes each step's matrix orthogonal.
    """
    adam_rate, muon_rate = float(settings.learning_rate or 0), float(settings.muon_learning_rate or 0)
    still = {"params": others, "lr": adam_rate, "weight_decay": 0.0}
    if settings.optimizer == "adamw":
        moved = {"params": matrices, "lr": adam_rate, "weight_decay": settings.weight_decay}
        optimizers: list[Optimizer] = [AdamW([moved, still], betas=(0.9, 0.95), fused=True)]
    else:
        moved = {"params": matrices, "lr": muon_rate, "weight_decay": settings.weight_decay}
        optimizers = [Muon([moved], momentum=0.95), AdamW([still], betas=(0.9, 0.95), fused=True)]
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
    """The inverse of `optimizer_tensors`."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            _, which, parameter, name = path.split(".")
            if int(which) == number:
                state.setdefault(int(parameter), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
