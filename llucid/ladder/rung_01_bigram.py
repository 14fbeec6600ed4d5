"""Bigram table: the next character is predicted from the current one alone, by its row of scores in a table."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.sampling import normal

CHANGE = "one table of scores"


class Weights(NamedTuple):
    table: Float[Any, "vocab vocab"]


def init(config: Config, seed: int) -> Weights:
    """Small random scores: nearly uniform predictions."""
    draw = normal(seed)
    return Weights(table=draw(0.02, config.vocab_size, config.vocab_size))


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """T[token]. Shannon 1948, §3, the digram approximation."""
    return F.embedding(tokens, weights.table)
