"""Scores by which heads of a known kind are found, each Float[layers heads]."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llucid.arrays.devices import without_autocast
from llucid.look.instrument import rows
from llucid.look.trace import Trace, own_tensors
from llucid.model import Model

SAMPLE = 1024
"""Tokens of the vocabulary, evenly spaced, by which copying is measured."""


class HeadScores(NamedTuple):
    """How strongly each head is of each kind. NaN where the text has no place to measure it at."""

    previous: Float[Tensor, "layers heads"]
    """Mean attention to the token before."""
    first: Float[Tensor, "layers heads"]
    """Mean attention to the first token, where heads rest that find nothing ("attention sink", Xiao et al. 2023)."""
    same: Float[Tensor, "layers heads"]
    """Mean attention to earlier copies of the token, where there are any."""
    induction: Float[Tensor, "layers heads"]
    """Mean attention to what followed earlier copies of the token, where there are any: "A B … A" looks at B.

    Olsson et al. 2022, "In-context Learning and Induction Heads". Measure it on a text that repeats itself.
    """
    copying: Float[Tensor, "layers heads"]
    """Σλ / Σ|λ| over the eigenvalues of what the head does to the logits of the token it looks at, from −1 (it makes
    that token less likely) to 1 (more). Elhage et al. 2021. Does not depend on the text."""


def head_scores(trace: Trace, copied: Float[Tensor, "layers heads"] | None = None) -> HeadScores:
    """The scores of every head on this text; `copied` is what `copying` said of the model before, if it is known."""
    ids = torch.tensor(trace.ids, device="cpu")
    at = torch.arange(len(ids), device="cpu")
    before = at < at[:, None]
    same = (ids[:, None] == ids) & before
    followed = torch.zeros_like(same)
    followed[:, 1:] = same[:, :-1]
    masks = [at + 1 == at[:, None], before & (at == 0), same, followed & before]

    def of(layer: int) -> Float[Tensor, "kinds heads"]:
        p = trace.attention_of(layer).cpu()  # large: no other layer's is in memory
        return torch.stack([_mean_attention(p, mask) for mask in masks])

    scores = torch.stack([of(layer) for layer in range(trace.model.config.layers)], 1)
    return HeadScores(*scores, copying=copying(trace.model) if copied is None else copied)


def _mean_attention(p: Float[Tensor, "heads seq seq"], mask: Bool[Tensor, "seq seq"]) -> Float[Tensor, " heads"]:
    """Attention to where the mask is true, as a mean over the positions that have such a place."""
    return (p * mask).sum(-1)[:, mask.any(-1)].mean(-1)


@without_autocast()
def copying(model: Model) -> Float[Tensor, "layers heads"]:
    """Whether each head raises the logit of the token that it looks at, computed from the weights only.

    The head takes a token's embedding to logits by E V O U; its eigenvalues that are not 0 are those of the much
    smaller V O U E.
    """
    config, weights = model.config, own_tensors(model).weights
    step = max(1, config.vocab_size // SAMPLE)
    output = weights.embedding if weights.output is None else weights.output
    read, written = (
        torch.cat([rows(w, token, token + 1) for token in range(0, config.vocab_size, step)])
        for w in (weights.embedding, output)
    )
    read = read * torch.rsqrt(read.square().mean(-1, keepdim=True) + config.norm_eps)
    both = read.mT @ (written * weights.norm)  # dim dim
    scores: list[Tensor] = []
    for block in weights.blocks:
        v = rows(block.attention.value, 0, config.kv_heads * config.head_dim) * block.attention_norm
        v = v.unflatten(0, (config.kv_heads, -1)).repeat_interleave(config.heads // config.kv_heads, 0)
        o = rows(block.attention.output, 0, config.dim).unflatten(1, (config.heads, -1)).transpose(0, 1)
        eigenvalues = torch.linalg.eigvals(v @ both @ o)
        scores.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
    return torch.stack(scores).cpu()
