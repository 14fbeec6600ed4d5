"""Makes a larger model that computes almost the same as a smaller one: `python benchmarks/grow.py MODEL OUT`.

Each matrix of the smaller model becomes a corner of the larger one's (Chen et al. 2015, Net2Net). The rest is
untrained: it writes little into the residual stream, so a block added at the end begins as almost the identity. The
mean square of a stream with new, almost empty dimensions is smaller by the ratio of the widths; the gains make up for
it.
"""

import dataclasses
import math
import sys

import torch
from torch import Tensor

import llucid
from llucid.weights import assemble, initialise, named_leaves

LARGER = {"dim": 192, "layers": 5, "heads": 6, "kv_heads": 6, "ffn_dim": 512}
"""The storyteller's numbers."""


def grow(model: llucid.Model) -> llucid.Model:
    """The model with the numbers `LARGER`, which are at least its own, and heads of the same width."""
    config = dataclasses.replace(model.config, **LARGER)
    new, old = dict(named_leaves(initialise(config))), dict(named_leaves(model.weights))

    def leaf(path: str, shape: tuple[int, ...]) -> Tensor:
        grown: Tensor = new[path].clone()
        if path in old:
            grown[tuple(slice(size) for size in old[path].shape)] = old[path].float()
        if len(shape) == 1:
            grown *= math.sqrt(model.config.dim / config.dim)
        return grown

    return model._replace(config=config, weights=assemble(config, leaf))


if __name__ == "__main__":
    small = llucid.load(sys.argv[1], device="cpu", dtype="float32")
    large = grow(small)
    ids = torch.tensor([small.text().encode("The fox rang the bell. The fox rang the")])
    before, after = (llucid.llama.llama(ids, m.weights, m.config)[0, -1].softmax(-1) for m in (small, large))
    print(f"largest difference between the probabilities of the next token: {(before - after).abs().max():.3f}")
    llucid.save(large, sys.argv[2])
