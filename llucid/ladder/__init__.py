"""From a bigram table to a Llama in ten models ("rungs"), each a small change to the one before: `diff` two files.

    from llucid.ladder import RUNGS
    rung = RUNGS[3]
    weights = rung.init(config, seed=0)
    rung.loss(inputs, targets, weights, config)         # Int[batch seq], twice -> Float[""], nats over all tokens

All take the same `Config`, that of the last rung, and use the numbers that they need.

checks.py       what is checked before training; run.py trains and evaluates all rungs
comparison.py   which differences are significant; report.py prints them, plot.py draws them
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder import (
    rung_01_bigram,
    rung_02_rnn,
    rung_03_attention_cheats,
    rung_04_causal_mask,
    rung_05_rms_norm,
    rung_06_rope,
    rung_07_heads,
    rung_08_swiglu,
    rung_09_blocks,
    rung_10_llama,
)
from llucid.training.step import cross_entropy_sum


class Rung(NamedTuple):
    """One model of the ladder: how to initialise its weights, and how to compute logits."""

    number: int
    name: str
    sentence: str
    """What is new, and why."""
    change: str
    """What is new, in a few words."""
    init: Callable[[Config, int], Any]
    """(config, seed) -> untrained weights, a named tuple of arrays."""
    logits: Callable[[Tensor, Any, Config], Tensor]
    """(tokens, weights, config): Int[batch seq] -> Float[batch seq vocab]."""

    def loss(
        self, inputs: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"], weights: Any, config: Config, *_: Any
    ) -> Float[Tensor, ""]:
        """−Σ log p(target) in nats over all tokens; targets of −100 are ignored. Called as `training.step.loss_sum`."""
        return cross_entropy_sum(self.logits(inputs, weights, config), targets)


def _rung(number: int, module: ModuleType) -> Rung:
    name, sentence = " ".join((module.__doc__ or "").split()).split(": ", 1)
    return Rung(number, name, sentence[0].upper() + sentence[1:], module.CHANGE, module.init, module.logits)


_MODULES = (
    *(rung_01_bigram, rung_02_rnn, rung_03_attention_cheats, rung_04_causal_mask, rung_05_rms_norm, rung_06_rope),
    *(rung_07_heads, rung_08_swiglu, rung_09_blocks, rung_10_llama),
)
RUNGS = tuple(_rung(number, module) for number, module in enumerate(_MODULES, start=1))
"""All rungs, the lowest first."""
