"""Bigram table: the next character is predicted only from the current one, by its row of scores in a table."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained

CHANGE = "one table of scores"


class Weights(NamedTuple):
    table: Float[Any, "vocab vocab"]


init = untrained(Weights)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """T[token]. Shannon 1948, §3, the digram approximation."""
    return F.embedding(tokens, weights.table)
