"""Llama: heads share keys and values, so that fewer need to be kept (grouped queries); `llama.py` itself, called."""

from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.llama import llama
from llucid.weights import Weights, initialise

CHANGE = "heads share k and v"


def init(config: Config, seed: int) -> Weights:
    """Untrained weights. Ainslie et al. 2023, §2.2: fewer heads of keys and values than of queries."""
    return initialise(config, seed)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """`llama`, called."""
    return llama(tokens, weights, config)
