# %% [markdown]
# # Feed-forward and the block
#
# Attention moves information between tokens. The feed-forward network then works on each token
# alone; in a large model it holds two thirds of the parameters or more. Both only ever add to a
# vector that runs through the model from bottom to top. At the end of this lesson we watch a
# prediction take shape in that vector, block by block.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from figures import boxes
from llucid import PRESETS
from llucid.llama import (
    Placement,
    attention,
    block,
    rms_norm,
    rope_frequencies,
    rotations,
    swiglu,
    unembed,
)
from llucid.weights import shapes
from trained import fables_model

torch.set_grad_enabled(False)
model = fables_model()
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% [markdown]
# ## A gate decides what passes
#
# The network is three matrices. Two of them, gate $G$ and up $U$, make a wider vector of
# `ffn_dim` numbers each; the third, down $D$, brings it back (Shazeer 2020, eq. 6):
#
# $$ \mathrm{SwiGLU}(x) = D\,\bigl(\mathrm{silu}(G x) \odot U x\bigr)
#    \qquad \mathrm{silu}(z) = \frac{z}{1 + e^{-z}} $$
#
# Each of the `ffn_dim` products is a little detector (a *neuron*): $U x$ says how much, the gate
# says whether. Where the gate's $z$ is far below zero, silu is nearly zero and nothing passes;
# far above, it is nearly $z$. Unlike a hard threshold it is smooth, so a gradient can open a gate
# that is shut.

# %%
z = torch.linspace(-6, 6, 200)
figure, ax = plt.subplots(figsize=(5, 2.7))
ax.plot(z, F.silu(z), label="silu(z)")
ax.plot(z, F.relu(z), "--", color="#999999", lw=1.1, label="max(z, 0)")
ax.set(xlabel="z", aspect="equal", ylim=(-0.7, 3))
ax.grid()
ax.legend()

# %%
ids = torch.tensor([tokenizer.encode("One bright summer noon, Pip the young duck came home.")])
x = F.embedding(ids, weights.embedding)
of_ffn = weights.blocks[0].feed_forward
gate, up = x @ of_ffn.gate.T, x @ of_ffn.up.T
out = (F.silu(gate) * up) @ of_ffn.down.T
print("x", list(x.shape), "-> gate, up", list(gate.shape), "-> out", list(out.shape))
assert out.allclose(swiglu(x, of_ffn), atol=1e-5)

# %% [markdown]
# A network of two matrices would usually be made four times as wide as the stream. With a third
# matrix it is made $\tfrac{2}{3} \cdot 4 = \tfrac{8}{3}$ as wide, so that the number of
# parameters is the same, and rounded up to what the hardware likes. Llama 2 70B and Llama 3 make
# it wider still: shared keys and values leave parameters over.

# %%
for name in ("llama-2-7b", "llama-3-8b", "llama-3.1-405b"):
    c = PRESETS[name].config
    ffn = c.layers * 3 * c.dim * c.ffn_dim
    print(
        f"{name:15} ffn_dim / dim = {c.ffn_dim / c.dim:.2f},",
        f"feed-forward is {ffn / c.parameters:.0%} of all parameters",
    )

# %% [markdown]
# ## What a detector detects
#
# Take one of the products in the last block and see on which tokens of some fables it is
# largest. Many mean nothing that we could name, and some are plain. To find plain ones without
# looking at all: choose those whose ten largest values fall on the fewest different tokens.


# %%
def streams(ids: torch.Tensor) -> list[torch.Tensor]:
    """The vectors of all tokens before the first block, and after each one."""
    x = F.embedding(ids, weights.embedding)
    at = torch.arange(ids.shape[1])[None].expand(ids.shape)
    rotation = rotations(at, rope_frequencies(config, x))
    found = [x]
    for of_block in weights.blocks:
        found.append(x := block(x, of_block, config, Placement(rotation)))
    return found


from llucid.corpora import open_corpus

fables = next(open_corpus(["fables"]).text("validation"))
read = torch.tensor(tokenizer.encode(fables[:60_000]))
rows = read[: len(read) // config.context * config.context].view(-1, config.context)

last = weights.blocks[-1]
below = streams(rows)[-2]  # what enters the last block; its attention comes first
normed = rms_norm(below, last.attention_norm, config.norm_eps)
at = torch.arange(config.context).expand(rows.shape)
rotation = rotations(at, rope_frequencies(config, below))
between = below + attention(normed, last.attention, config, rotation, None)
normed = rms_norm(between, last.feed_forward_norm, config.norm_eps)
passed = F.silu(normed @ last.feed_forward.gate.T) * (normed @ last.feed_forward.up.T)
print("tokens", list(rows.shape), "-> products", list(passed.shape), " rows seq ffn")

relative = passed.abs() / passed.abs().amax((0, 1))  # 1 at its largest
largest = relative.flatten(0, 1).topk(10, dim=0).indices  # 10 ffn
variety = torch.tensor([len(set(column.tolist())) for column in rows.flatten()[largest].T])

plain: dict[tuple[str, ...], int] = {}  # what is detected, by which
for detector in variety.argsort().tolist():
    found = rows.flatten()[largest[:, detector]].unique().tolist()
    plain.setdefault(tuple(tokenizer.decode([token]) for token in found), detector)
chosen = list(plain.items())[:4]
for words, detector in chosen:
    print(f"detector {detector:3} is largest on", *map(repr, words))

# %% [markdown]
# Each of the four, around the place where it is largest:

# %%
figure, axes = plt.subplots(len(chosen), 1, figsize=(7.4, 3.9))
for ax, (_, detector) in zip(axes, chosen, strict=True):
    row, at = divmod(int(relative[..., detector].argmax()), config.context)
    part = slice(max(0, at - 20), max(0, at - 20) + 32)
    pieces = [tokenizer.decode([token]) for token in rows[row, part].tolist()]
    boxes(ax, pieces, plt.get_cmap("Oranges")(0.7 * relative[row, part, detector].numpy()))
    ax.set_title(f"detector {detector}", fontsize=9)

# %% [markdown]
# ## The block: two additions
#
# A block reads the stream through a norm, and what it makes is added (Touvron et al. 2023, §2.2):
# a *residual connection*, and the vector is the *residual stream*. Nothing is ever replaced:
#
# $$ x \leftarrow x + \mathrm{Attention}(\mathrm{RMSNorm}(x)) $$
# $$ x \leftarrow x + \mathrm{SwiGLU}(\mathrm{RMSNorm}(x)) $$
#
# So a gradient reaches the lowest block through a sum, undiminished, and a block that has
# nothing to say can say nothing. The length of the stream shows what each adds:

# %%
stream = streams(rows[:8])
for layer, (before, after) in enumerate(pairwise(stream)):
    print(
        f"block {layer}: stream rms {before.square().mean().sqrt():.2f}",
        f"-> {after.square().mean().sqrt():.2f},",
        f"added {(after - before).square().mean().sqrt():.2f}",
    )

# %% [markdown]
# ## A prediction takes shape
#
# The last norm and the output matrix turn the stream into scores for the next token. Nobody
# keeps us from asking earlier: unembed the stream after *every* block and see what the model
# would say if it ended there (the "logit lens"). Colour is the probability of the token that
# really comes next; the words are the likeliest guess.

# %% tags=["picture"]
tale = torch.tensor(tokenizer.encode(fables.split("\n\n")[1]))
shown = slice(16, 30)  # the model reads all before them, too
row, truth = tale[shown], tale[1:][shown]
figure, ax = plt.subplots(figsize=(7.4, 3.3))
layers = [x[0, shown] for x in streams(tale[None, :-1])]
scores = [unembed(rms_norm(x, weights.norm, config.norm_eps), weights) for x in layers]
chance = torch.stack(scores).softmax(-1)
right = chance[:, torch.arange(len(truth)), truth]
print("probabilities", list(chance.shape), " layer seq vocab")
ax.imshow(right.numpy(), cmap="Greens", vmin=0, vmax=1, aspect="auto")
for layer in range(len(layers)):
    for at, token in enumerate(chance[layer].argmax(-1).tolist()):
        guess = tokenizer.decode([token]).strip() or "␣"
        colour = "white" if right[layer, at] > 0.6 else "#333333"
        ax.text(at, layer, guess[:8], ha="center", va="center", size=7.5, color=colour)
read_here = [tokenizer.decode([token]).strip() or "␣" for token in row.tolist()]
ax.set_xticks(range(len(truth)), read_here, rotation=45, ha="right")
ax.set_yticks(range(len(layers)), ["embedding", *(f"block {n}" for n in range(config.layers))])
ax.set_xlabel("the token that was read")

# %% [markdown]
# ## Every parameter, counted
#
# That is the whole model: an embedding, blocks, a norm, an output matrix.

# %%
parts = {"embedding and output": 0, "attention": 0, "feed-forward": 0, "norms": 0}
for path, shape in shapes(config).items():
    kind = (
        "norms" if "norm" in path
        else "attention" if ".attention." in path
        else "feed-forward" if "feed_forward" in path
        else "embedding and output"
    )  # fmt: skip
    parts[kind] += torch.Size(shape).numel()
for kind, number in parts.items():
    print(f"{kind:22}{number:9,}  {number / config.parameters:5.1%}")
assert sum(parts.values()) == config.parameters

# %% [markdown]
# ## Exercises
#
# **1.** Write `block_parameters(dim, heads, kv_heads, head_dim, ffn_dim)`: how many numbers one
# block holds.


# %% tags=["answer"]
def block_parameters(dim: int, heads: int, kv_heads: int, head_dim: int, ffn_dim: int) -> int:
    """Query and output, key and value, three matrices of the feed-forward, two gains."""
    return 2 * dim * heads * head_dim + 2 * dim * kv_heads * head_dim + 3 * dim * ffn_dim + 2 * dim


# %% tags=["check"]
c = PRESETS["llama-3-8b"].config
counted = block_parameters(c.dim, c.heads, c.kv_heads, c.head_dim, c.ffn_dim)
assert c.layers * counted + 2 * c.vocab_size * c.dim + c.dim == c.parameters
print(f"holds: a block of Llama 3 8B has {counted:,} parameters")

# %% [markdown]
# **2.** A block that has nothing to say: write `silence(of_block)`, the same block with the
# two matrices that write into the stream set to zero. (`_replace` makes a changed copy of a
# named tuple.) Its output must be its input, bit for bit.


# %% tags=["answer"]
def silence(of_block):
    """The block with the output of attention and the down of the feed-forward zeroed."""
    return of_block._replace(
        attention=of_block.attention._replace(output=0 * of_block.attention.output),
        feed_forward=of_block.feed_forward._replace(down=0 * of_block.feed_forward.down),
    )


# %% tags=["check"]
rotation = rotations(torch.arange(ids.shape[1])[None], rope_frequencies(config, x))
quiet = silence(weights.blocks[1])
assert block(x, quiet, config, Placement(rotation)).equal(x)
assert not block(x, weights.blocks[1], config, Placement(rotation)).equal(x)
print("holds: what adds nothing changes nothing")

# %% [markdown]
# **3.** silu is $z\,\sigma(z)$ with $\sigma(z) = 1/(1 + e^{-z})$. Where is its lowest point?
# Write `lowest()` that returns the $z$, to two decimals at least.


# %% tags=["answer"]
def lowest() -> float:
    """The z of the least silu, found on a fine grid."""
    z = torch.linspace(-3, 0, 30_001)
    return z[F.silu(z).argmin()].item()


# %% tags=["check"]
at = torch.tensor(lowest())
assert -2 < at < 0
assert F.silu(at) <= F.silu(at - 0.01)
assert F.silu(at) <= F.silu(at + 0.01)
print(f"holds: silu is lowest at {at.item():.3f}, where it is {F.silu(at).item():.4f}")
