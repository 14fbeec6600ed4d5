# %% [markdown]
# # Attention
#
# Attention is the only place in a Llama where tokens meet. Each one asks a question, each
# earlier one answers it more or less well, and what they have to say is mixed in that
# proportion. We do it by hand, one head at a time, with a small model that has learned to
# write fables, and then see what the heads of a trained model have found worth looking at.

# %%
import math
import os
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import llucid
from figures import boxes
from llucid import PRESETS
from llucid.generation import prompt_ids
from llucid.generation.predictions import token_text
from llucid.llama import (
    Placement,
    attention,
    attention_written_out,
    block,
    rms_norm,
    rope_frequencies,
    rotate,
    rotations,
    visible,
)
from trained import fables_model

torch.set_grad_enabled(False)
model = fables_model()  # from the cache; the first time, it is trained now
config, weights, tokenizer = model.config, model.weights, model.tokenizer
print(f"{config.parameters:,} parameters: {config.layers} blocks, dim {config.dim},")
print(f"{config.heads} query heads of {config.head_dim}, {config.kv_heads} key heads")

# %% [markdown]
# A text becomes ids, and each id becomes a row of the embedding: `dim` numbers. Lesson 01
# is about the ids; here it is enough that most words of a fable are one token each.

# %%
text = (
    "One rainy morning, Nettle the quick fox lent her patched drum to Moss the old toad. "
    "Two days later Moss fell on the drum at the ferry."
)
ids = torch.tensor([tokenizer.encode(text)])
pieces = [tokenizer.decode([token]) for token in ids[0].tolist()]
x = F.embedding(ids, weights.embedding)
print("ids", list(ids.shape), "-> x", list(x.shape), " batch seq dim")
print(pieces[:12])

# %% [markdown]
# ## One head: query, key, value
#
# A head has three matrices. They make of each token's vector $x$ a query (what am I looking
# for?), a key (what do I offer?) and a value (what do I say if I am chosen?):
#
# $$ q = W_q\,x \qquad k = W_k\,x \qquad v = W_v\,x $$
#
# The matrices of all heads lie on top of one another, so the first `head_dim` rows are those
# of head 0. Queries and keys are then turned by RoPE, as in lesson 02.

# %%
weights_0 = weights.blocks[0].attention
normed = rms_norm(x, weights.blocks[0].attention_norm, config.norm_eps)
positions = torch.arange(ids.shape[1])[None]
rotation = rotations(positions, rope_frequencies(config, x))

first = slice(0, config.head_dim)
q = rotate((normed @ weights_0.query[first].T)[:, None], rotation)[0, 0]
k = rotate((normed @ weights_0.key[first].T)[:, None], rotation)[0, 0]
v = (normed @ weights_0.value[first].T)[0]
print("q", list(q.shape), "k", list(k.shape), "v", list(v.shape), " seq head_dim")

# %% [markdown]
# ## Scores, mask, softmax
#
# Every query is compared with every key: a dot product, divided by $\sqrt{d}$ where $d$ is
# `head_dim`. A token may not look at later ones, so their scores become $-\infty$. The
# softmax makes each row positive with sum one: the *attention weights*, which mix the values
# (Vaswani et al. 2017, eq. 1):
#
# $$ \mathrm{Attention}(q, k, v) =
#    \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{d}} + M\right) v $$

# %%
scores = q @ k.T / math.sqrt(config.head_dim)
mask = visible(positions, positions)[0, 0]  # true where key position ≤ query position
looks = scores.masked_fill(~mask, -math.inf).softmax(-1)
mixed = looks @ v
print("scores", list(scores.shape), "looks", list(looks.shape), "mixed", list(mixed.shape))
print("each row adds up to one:", bool(looks.sum(-1).allclose(torch.ones(len(looks)))))

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.9))
steps = (
    ("scores", scores, "RdBu", scores.abs().max()),
    ("masked: −∞ is left white", scores.masked_fill(~mask, math.nan), "RdBu", scores.abs().max()),
    ("softmax", looks, "Blues", 1.0),
)
for ax, (title, values, colours, top) in zip(axes, steps, strict=True):
    low = -top if colours == "RdBu" else 0
    ax.imshow(values.numpy(), cmap=colours, vmin=low, vmax=top, interpolation="none")
    ax.set(title=title, xlabel="key", ylabel="query" if ax is axes[0] else "")

# %% [markdown]
# The package has the same three lines for all heads at once, and calls them
# `attention_written_out`. One head through it gives what we have:

# %%
whole = attention_written_out(q[None, None], k[None, None], v[None, None], mask[None, None])
print("largest difference:", (whole[0, 0] - mixed).abs().max().item())
assert whole[0, 0].allclose(mixed, atol=1e-5)

# %% [markdown]
# ## Why divide by √d
#
# The dot product of two vectors of $d$ independent numbers of variance one has variance $d$.
# Without the division, wider heads would have larger scores, the softmax would give nearly
# everything to one key, and a gradient could hardly change its mind. Entropy in nats says
# over how many keys a row spreads: $e^H$ of them.

# %%
generator = torch.Generator().manual_seed(0)


def entropy(p: torch.Tensor) -> torch.Tensor:
    """−Σ p log p of the last axis, in nats."""
    return -torch.xlogy(p, p).sum(-1)


for width in (4, 64, 1024):
    a, b = torch.randn(2, 100, width, generator=generator)
    raw, divided = (a @ b.T).softmax(-1), (a @ b.T / math.sqrt(width)).softmax(-1)
    print(
        f"head_dim {width:4}: a row spreads over {entropy(raw).exp().mean():5.1f} of 100 keys,",
        f"divided by √d over {entropy(divided).exp().mean():5.1f}",
    )

# %% [markdown]
# ## Why mask
#
# The model is trained to say at every position what comes next. If a token could look ahead
# it would see the answer. So nothing may change before a token when that token changes:

# %%
other = ids.clone()
other[0, -1] = 0
normed_other = rms_norm(
    F.embedding(other, weights.embedding), weights.blocks[0].attention_norm, config.norm_eps
)
out = attention(normed, weights_0, config, rotation, mask[None, None])
out_other = attention(normed_other, weights_0, config, rotation, mask[None, None])
changed = (out != out_other).any(-1)[0]
print(
    "attention",
    list(out.shape),
    "| positions changed by another last token:",
    changed.nonzero().flatten().tolist(),
)
assert changed.tolist() == [False] * (len(changed) - 1) + [True]

# %% [markdown]
# This is also what makes writing cheap (lesson 06): what was computed for earlier tokens
# stays right when more are added.
#
# ## Many heads, fewer keys
#
# One softmax can look at one thing. A block has several heads, each with its own matrices;
# their results lie side by side, and the output matrix $W_o$ mixes them back to `dim`
# numbers. When writing, keys and values of all earlier tokens must be kept, and read again
# for each new one. Grouped-query attention (Ainslie et al. 2023) lets several query heads
# share one key and value head, and keeps that much less. Here is what has to be kept, in
# 16 bits, for one text as long as the context:

# %%
print(f"{'':16} heads  kv_heads  a token     a context")
for name in ("llama-2-7b", "llama-2-70b", "llama-3-8b", "llama-3-70b"):
    c = PRESETS[name].config
    token = 2 * 2 * c.layers * c.kv_heads * c.head_dim  # key and value, two bytes each
    size = f"{token / 1024:5.0f} KiB {token * c.context / 2**30:8.2f} GiB"
    print(f"{name:16} {c.heads:5} {c.kv_heads:9}  {size}")

# %% [markdown]
# In our model two query heads share a key head, in order: query heads 0 and 1 use key head 0,
# query heads 2 and 3 use key head 1. Repeating the keys gives the same as sharing them:

# %%
heads = rotate(
    (normed @ weights_0.query.T).unflatten(-1, (config.heads, -1)).transpose(1, 2), rotation
)
keys = rotate(
    (normed @ weights_0.key.T).unflatten(-1, (config.kv_heads, -1)).transpose(1, 2), rotation
)
values = (normed @ weights_0.value.T).unflatten(-1, (config.kv_heads, -1)).transpose(1, 2)
print(
    "q",
    list(heads.shape),
    "k",
    list(keys.shape),
    "v",
    list(values.shape),
    " batch heads seq head_dim",
)

group = config.heads // config.kv_heads
shared = attention_written_out(heads, keys, values, None)
repeated = attention_written_out(
    heads, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), None
)
assert shared.allclose(repeated, atol=1e-6)
joined = shared.transpose(1, 2).flatten(-2) @ weights_0.output.T
assert joined.allclose(out, atol=1e-5)
print("heads joined and mixed", list(joined.shape), "is what `attention` returns")

# %% [markdown]
# ## What the heads look at
#
# To see where a head looks, let the values be the identity matrix: then the mixture *is* the
# mixing proportions. We do it in each block, and let the block pass the stream on.


# %%
def looks_of(ids: torch.Tensor, model: llucid.Model) -> torch.Tensor:
    """How every head mixes: layers heads seq seq."""
    config, weights = model.config, model.weights
    x, found = F.embedding(ids, weights.embedding), []
    rotation = rotations(torch.arange(ids.shape[1])[None], rope_frequencies(config, x))
    identity = torch.eye(ids.shape[1]).expand(1, config.kv_heads, -1, -1)
    for of_block in weights.blocks:
        normed = rms_norm(x, of_block.attention_norm, config.norm_eps)
        q = (normed @ of_block.attention.query.T).unflatten(-1, (config.heads, -1)).transpose(1, 2)
        k = (normed @ of_block.attention.key.T).unflatten(-1, (config.kv_heads, -1)).transpose(1, 2)
        q, k = rotate(q, rotation), rotate(k, rotation)
        found.append(attention_written_out(q, k, identity, None)[0])
        x = block(x, of_block, config, Placement(rotation))
    return torch.stack(found)


# %% [markdown]
# Our own model has read for some seconds only, and its heads are still vague. If `LLUCID_DATA`
# names a folder that has stories260K, a published model of 260 thousand parameters that was
# trained on tiny stories for much longer, we look into that one.

# %%
data = Path(os.environ.get("LLUCID_DATA", "nowhere"))
looked, name, story = model, "our model of fables", text
if (data / "stories260K.bin").is_file():
    file, vocabulary = data / "stories260K.bin", data / "tok512.bin"
    looked, name = llucid.load(file, tokenizer=vocabulary, device="cpu"), "stories260K"
    story = (
        "Once upon a time, there was a little girl named Lily. Lily had a red ball. "
        "One day, the red ball was lost. Lily was sad."
    )
read = prompt_ids(looked.tokenizer, story)  # with BOS, if the model has one
pieces = [token_text(looked.tokenizer, read[:at], token) for at, token in enumerate(read)]
maps = looks_of(torch.tensor([read]), looked)
print(f"{name}: {looked.config.parameters:,} parameters")
print("maps", list(maps.shape), " layers heads query key")

# %% tags=["picture"]
layers, heads = maps.shape[:2]
figure, axes = plt.subplots(layers, heads, figsize=(7.4, 7.4 * layers / heads + 0.5))
for layer, head in product(range(layers), range(heads)):
    ax = axes[layer, head]
    ax.imshow(maps[layer, head].sqrt().numpy(), vmin=0, vmax=1, interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if layer == 0:
        ax.set_title(f"head {head}", loc="center", fontsize=8)
    if head == 0:
        ax.set_ylabel(f"block {layer}", fontsize=8)
figure.supxlabel(f"where every head of {name} looks: rows look, columns are looked at", fontsize=9)

# %% [markdown]
# The colour is the square root of the proportion, so that faint looks show. Nobody told the
# heads what to do, and yet some are easy to name. A line just below the diagonal is a head that
# looks one token back: it hands on what came before, which the next block can build on. A line on
# the diagonal looks at itself. A column is a token that everyone looks at. Often that is the
# first one, a place to look when there is nothing to look for. Which heads are they? Measure.

# %%
kinds = {
    "one token back": maps.diagonal(-1, -2, -1).mean(-1),
    "itself": maps.diagonal(0, -2, -1).mean(-1),
    "the first token": maps[..., 4:, 0].mean(-1),
}
for title, share in kinds.items():
    layer, head = divmod(int(share.argmax()), heads)
    print(f"{title:16} block {layer}, head {head}: {share.max():.0%} of its attention")

# %% [markdown]
# And what does one token see? Here is the whole text as the last token looks at it, by each of
# these heads, and by the one that looks furthest back on average.

# %%
places = torch.arange(maps.shape[-1])
kinds["far back"] = (places - (maps * places).sum(-1)).mean(-1)  # of the distance
figure, axes = plt.subplots(len(kinds), 1, figsize=(7.4, 1.1 * len(kinds)))
for ax, (title, share) in zip(axes, kinds.items(), strict=True):
    layer, head = divmod(int(share.argmax()), heads)
    strength = maps[layer, head, -1].sqrt()
    boxes(ax, pieces, plt.get_cmap("Blues")(0.85 * strength.numpy()), width=78)
    ax.set_title(f"{title}: block {layer}, head {head}", fontsize=9)

# %% [markdown]
# ## Exercises
#
# **1.** Write `causal(n)`: the mask of `n` tokens in order, of shape `[n, n]`, true where a
# query may look, without `visible`.


# %% tags=["answer"]
def causal(n: int) -> torch.Tensor:
    """True on and below the diagonal."""
    return torch.ones(n, n, dtype=torch.bool).tril()


# %% tags=["check"]
for n in (1, 2, 7):
    at = torch.arange(n)[None]
    assert causal(n).equal(visible(at, at)[0, 0])
print("holds")

# %% [markdown]
# **2.** Write `kept_bytes(config, tokens)`: the bytes that keys and values of so many tokens
# take in 16 bits. How much would Llama 3 8B keep if every query head had its own key head?


# %% tags=["answer"]
def kept_bytes(config, tokens: int) -> int:
    """Keys and values, two bytes a number, in every layer and key head."""
    return 2 * 2 * tokens * config.layers * config.kv_heads * config.head_dim


# %% tags=["check"]
llama3 = PRESETS["llama-3-8b"].config
assert kept_bytes(llama3, 8192) == 2**30
assert kept_bytes(PRESETS["llama-2-7b"].config, 4096) == 2**31
print("holds: 1 GiB, and", llama3.heads // llama3.kv_heads, "times as much without sharing")

# %% [markdown]
# **3.** The softmax of scores that are all equal spreads evenly, over all that the mask lets
# through. Write `spread(looks)`, the entropy of each row, and say what it can be at most for
# the query at position $m$.


# %% tags=["answer"]
def spread(looks: torch.Tensor) -> torch.Tensor:
    """The entropy of each row; at most log(m + 1), since m + 1 tokens are visible."""
    return entropy(looks)


# %% tags=["check"]
even = torch.zeros(5, 5).masked_fill(~causal(5), -math.inf).softmax(-1)
assert spread(even).allclose(torch.arange(1, 6).log(), atol=1e-6)
assert spread(torch.tensor([[0.5, 0.25, 0.25]])).allclose(torch.tensor([1.5 * math.log(2)]))
limit = torch.arange(1, maps.shape[-1] + 1).log()
assert (spread(maps) <= limit + 1e-5).all()
print("holds: every row of every head stays below log(m + 1)")
