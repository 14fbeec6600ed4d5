"""Llama: query heads share keys and values (grouped-query attention), so the cache is smaller; this is `llama.py`."""

from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.llama import llama
from llucid.weights import Weights, initialise

CHANGE = "shared keys and values"


def init(config: Config, seed: int) -> Weights:
    """Untrained weights. Ainslie et al. 2023, §2.2: fewer heads of keys and values than of queries."""
    return initialise(config, seed)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """Calls `llama`."""
    return llama(tokens, weights, config)
