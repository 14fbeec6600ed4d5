"""The engine as tests of other parts use it."""

from collections.abc import Sequence

from llucid.config import Config
from llucid.generation import Batch, Request, Sampling, generator
from llucid.model import Model
from llucid.weights import Weights


def greedy(weights: Weights, config: Config, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """The likeliest ids after each prompt, all written in one batch."""
    batch = Batch(Model(config, weights, None))
    rows = {
        batch.add(Request(prompt, Sampling(temperature=0.0), generator(0), lambda token: False, max_tokens)): list[
            int
        ]()
        for prompt in prompts
    }
    while batch.busy:
        for event in batch.step():
            rows[event.number].append(event.token)
    return list(rows.values())
