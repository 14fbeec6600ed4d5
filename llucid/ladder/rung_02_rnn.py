"""RNN: a state is updated at every character, so that a prediction can depend on everything before it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llucid.config import Config
from llucid.ladder.untrained import untrained

CHANGE = "a recurrent state"


class Weights(NamedTuple):
    embedding: Float[Any, "vocab dim"]
    recurrent: Float[Any, "dim dim"]
    output: Float[Any, "vocab dim"]


init = untrained(Weights)


def logits(tokens: Int[Tensor, "batch seq"], weights: Weights, config: Config) -> Float[Tensor, "batch seq vocab"]:
    """hₜ = tanh(E[tokenₜ] + R hₜ₋₁) and O hₜ. Elman 1990."""
    x = F.embedding(tokens, weights.embedding)
    state, states = torch.zeros_like(x[:, 0]), list[Tensor]()
    for now in x.unbind(1):
        state = torch.tanh(now + F.linear(state, weights.recurrent))
        states.append(state)
    return F.linear(torch.stack(states, 1), weights.output)
