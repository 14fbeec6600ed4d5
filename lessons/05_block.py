# %% [markdown]
# # Norm, feed-forward, block
#
# Attention moves information between tokens. Two parts are left: RMSNorm, which brings each vector
# to one length, and the feed-forward network, which works on each token alone. Together they are a
# block. We watch how a stack of blocks turns *the* into *bell*, and which tokens it cannot guess.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import llucid
from figures import whole_llama
from llucid import PRESETS
from llucid.chat import STORYTELLER
from llucid.llama import Placement, block, rms_norm, rope_frequencies, rotations, swiglu, unembed
from llucid.weights import parameter_count

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% tags=["plot"]
# The whole Llama with the block, its norms and its feed-forward network highlighted.
whole_llama("block", "norm", "feed-forward")

# %% [markdown]
# ## RMSNorm: one length for all
#
# Every block adds something to a token's vector, so it grows, and how large it is should not
# matter to the next block. RMSNorm (Zhang & Sennrich 2019) divides by the root of the mean square
# and multiplies each coordinate by a learned gain $g$:
#
# $$ \mathrm{rms}(x) = \sqrt{\frac{1}{d}\sum_{i=1}^{d} x_i^2 + \varepsilon}
#    \qquad y = \frac{x}{\mathrm{rms}(x)} \odot g $$
#
# ($\odot$ multiplies coordinate by coordinate; $\varepsilon$ keeps zeros from being divided by zero.)
# By hand: the mean square of (3, 4) is 12.5, its root is 3.54.

# %%
x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [-0.3, 0.4]])
gain = torch.ones(2)
print(rms_norm(x, gain, eps=1e-5))
assert torch.allclose(rms_norm(x, gain, 1e-5)[0], torch.tensor([3.0, 4.0]) / 12.5**0.5, atol=1e-4)

# %% [markdown]
# The first two rows point in the same direction and come out the same: only the direction is left.
# The third, a hundredth of the second but for a sign, is so short that $\varepsilon$ shows in the
# last digit.
# In two dimensions, a cloud of points lands on a circle, and the gain makes an ellipse of it.

# %% tags=["plot"]
# A cloud of points, the same normalised to a circle, and stretched by the gain to an ellipse.
cloud = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 1.5
normed, gained = rms_norm(cloud, gain, 1e-5), rms_norm(cloud, torch.tensor([1.4, 0.5]), 1e-5)
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), sharex=True, sharey=True)
titles = ("x", "x / rms(x)", "x / rms(x) ⊙ g,  g = (1.4, 0.5)")
colour = torch.atan2(cloud[:, 1], cloud[:, 0])
for ax, points, title in zip(axes, (cloud, normed, gained), titles, strict=True):
    ax.scatter(*points.T, c=colour, cmap="twilight", s=6)
    ax.set(title=title, aspect="equal", xlim=(-3.4, 3.4), ylim=(-3.4, 3.4))

# %% [markdown]
# ## Feed-forward: a gate decides what passes
#
# The network has three matrices. Gate $G$ and up $U$ make a wider vector of `ffn_dim` numbers
# each, and down $D$ brings it back to `dim` (Shazeer 2020, eq. 6):
#
# $$ \mathrm{SwiGLU}(x) = D\,\bigl(\mathrm{silu}(G x) \odot U x\bigr)
#    \qquad \mathrm{silu}(z) = \frac{z}{1 + e^{-z}} $$
#
# Where $z$ is far below 0, silu is nearly 0 and nothing passes; far above, it is nearly $z$. By
# hand, with `dim` 2 and `ffn_dim` 1:

# %%
x = torch.tensor([1.0, 2.0])
G, U, D = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0], [0.0]])
gate, up = F.silu(G @ x), U @ x
first, second = (D @ (gate * up)).tolist()
print(f"silu(3) = {gate.item():.3f}, up = {up.item():.1f}, output = ({first:.3f}, {second:.0f})")
first, second = (D @ (F.silu(-10 * G @ x) * up)).tolist()
print(f"gate shut, silu(−30): ({first:.0e}, {second:.0f})")

# %% tags=["plot"]
# silu beside the hard threshold max(z, 0): the same far from 0, smooth near it.
z = torch.linspace(-6, 6, 200)
figure, ax = plt.subplots(figsize=(5, 2.5))
ax.plot(z, F.silu(z), label="silu(z)")
ax.plot(z, F.relu(z), "--", color="#999999", lw=1.1, label="max(z, 0)")
ax.set(xlabel="z", aspect="equal", ylim=(-0.7, 3))
ax.grid()
ax.legend()

# %% [markdown]
# Most parameters of a large model are here:

# %%
for name in ("llama-2-7b", "llama-3-8b", "llama-3.1-405b"):
    c = PRESETS[name].config
    share = c.layers * 3 * c.dim * c.ffn_dim / parameter_count(c)
    print(f"{name:15} ffn_dim / dim = {c.ffn_dim / c.dim:.2f}, feed-forward {share:.0%}")
    assert share > 0.6

# %% [markdown]
# ## The block, and the stream
#
# A block is attention and feed-forward, each after a norm, and each *added* to its input:
#
# $$ x \leftarrow x + \mathrm{Attention}(\mathrm{RMSNorm}(x)) \qquad
#    x \leftarrow x + \mathrm{SwiGLU}(\mathrm{RMSNorm}(x)) $$
#
# So the vector runs through the whole model, and every part reads it and writes to it. It is
# called the *residual stream*. Adding also lets gradients reach the first block undiminished.

# %%
text = "The fox rang the bell. The fox rang the"
ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
x = weights.embedding[ids]
rotation = rotations(torch.arange(ids.shape[1])[None], rope_frequencies(config, x))
streams = [x]
for of_block in weights.blocks:
    x = block(x, of_block, config, Placement(rotation))
    streams.append(x)
for number, stream in enumerate(streams):
    name = f"after block {number - 1}" if number else "embedding"
    print(f"{name:14} {list(stream.shape)}, rms {stream.square().mean().sqrt():.2f}")
assert streams[-1].norm() > streams[0].norm()

# %% [markdown]
# ## A prediction takes shape
#
# At the end, the stream is normalised once more and multiplied by the output matrix (`unembed`),
# which gives the scores. Nothing keeps us from doing that earlier, after every block: what would
# the model say if it ended there? This is called the *logit lens*.

# %%
scores = [unembed(rms_norm(x[0], weights.norm, config.norm_eps), weights) for x in streams]
p = torch.stack(scores).softmax(-1)  # layer seq vocab
target = tokenizer.encode(" bell")[0]
for number, row in enumerate(p[:, -1]):
    name = f"after block {number - 1}" if number else "embedding"
    print(f"{name:14} best {tokenizer.decode([row.argmax().item()])!r:9} bell {row[target]:.1%}")
assert p[-1, -1].argmax() == target
assert p[0, -1].argmax() == ids[0, -1]
assert p[-1, -1, target] > p[0, -1, target]

# %% [markdown]
# The first guess is the token that was read, *the*. The storyteller's output matrix is its embedding
# (they are tied), and a row of the embedding fits no row as well as itself. As blocks add to it, the
# vector still points mostly towards its own token; only late in the model does the answer become the
# larger part.

# %% tags=["picture"]
# The best guess after each block at every token; dark is a high probability of that guess.
pieces = ["<begin>", *(tokenizer.decode([token]).strip() for token in ids[0, 1:].tolist())]
figure, ax = plt.subplots(figsize=(7.4, 2.7))
best, marks = p.max(-1), set(tokenizer.special.values())
ax.imshow(best.values, cmap="Greens", vmin=0, vmax=1, aspect="auto")
for layer in range(len(p)):
    for at, token in enumerate(best.indices[layer].tolist()):
        colour = "white" if best.values[layer, at] > 0.6 else "#333333"
        guess = "mark" if token in marks else tokenizer.decode([token]).strip()[:8].replace("$", "")
        ax.text(at, layer, guess, ha="center", va="center", size=7.5, color=colour)
ax.set_xticks(range(len(pieces)), pieces)
ax.set_yticks(range(len(p)), ["embedding", *(f"block {n}" for n in range(config.layers))])
ax.set_xlabel("the token that was read")

# %% [markdown]
# ## Worse than guessing
#
# Look along the last row of the figure: the next token is in it for the last *bell*, and in most places
# it is not. How surprised was the model by each token of our text?

# %%
known = torch.cat([ids[0], torch.tensor([target])])
surprises = -p[-1].log()[torch.arange(len(known) - 1), known[1:]]
for token, surprise in zip(known[1:].tolist(), surprises.tolist(), strict=True):
    print(f"{tokenizer.decode([token])!r:8} {surprise:5.2f} nats")
guessing = torch.tensor(float(config.vocab_size)).log()
print(f"mean {surprises.mean():.2f}; a model that knows nothing: ln {config.vocab_size:,} = {guessing:.2f}")
assert surprises[-1] < 2 < guessing < surprises.max()

# %% [markdown]
# Many tokens cost more than a model pays that knows nothing. That is no mistake in the code. The
# storyteller has read conversations about fables and nothing else. All of them begin with the mark of
# a speaker, not with *The*, and in its tales a fox has a name. It is nearly certain of what usually
# comes, and to be certain and wrong costs more than to guess. What the repetition
# makes cheap is the last *bell*. Inside of tales it predicts nearly everything, as lesson 11 shows.
#
# ## Every parameter, counted
#
# That is all there is: an embedding, blocks, a norm, an output matrix.

# %%
attention = 2 * config.dim * config.head_dim * (config.heads + config.kv_heads)
feed_forward = 3 * config.dim * config.ffn_dim
tables = config.vocab_size * config.dim * (1 if config.tied_embeddings else 2)
parts = {
    "embedding and output": tables,
    "attention": config.layers * attention,
    "feed-forward": config.layers * feed_forward,
    "norms": (2 * config.layers + 1) * config.dim,
}
for name, numbers in parts.items():
    print(f"{name:21}{numbers:9,}  {numbers / parameter_count(config):6.1%}")
assert sum(parts.values()) == parameter_count(config)

# %% [markdown]
# ## Exercises
#
# **1.** Write `norm(x, gain, eps)`: RMSNorm of the last axis, with tensors and without `rms_norm`.

# %% tags=["exercise"]


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) ⊙ gain."""
    raise NotImplementedError


# %% tags=["check"]
example = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(1)) + 1
gain = torch.rand(16, generator=torch.Generator().manual_seed(2))
for eps in (1e-5, 0.5):
    assert torch.allclose(norm(example, gain, eps), rms_norm(example, gain, eps), atol=1e-5)
print("correct")


# %% tags=["answer"]
def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) ⊙ gain."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


# %% [markdown]
# **2.** Write `feed_forward_of(x, G, U, D)`, SwiGLU for `x` of shape `[seq, dim]`. The matrices are
# stored as `[out, in]`, so a row vector is multiplied as `x @ G.T`.

# %% tags=["exercise"]


def feed_forward_of(x, G, U, D):
    """D (silu(G x) ⊙ U x) for every row of x."""
    raise NotImplementedError


# %% tags=["check"]
of = weights.blocks[0].feed_forward
rows = streams[0][0]
assert torch.allclose(feed_forward_of(rows, of.gate, of.up, of.down), swiglu(rows, of), atol=1e-4)
print("correct")


# %% tags=["answer"]
def feed_forward_of(x, G, U, D):
    """D (silu(G x) ⊙ U x) for every row of x."""
    return (F.silu(x @ G.T) * (x @ U.T)) @ D.T


# %% [markdown]
# **3.** A block that adds nothing: write `silenced(of_block)`, the same block with the two matrices
# that write to the stream set to zero (`_replace` makes a changed copy of a named tuple).

# %% tags=["exercise"]


def silenced(of_block):
    """The block, with attention's output and the feed-forward's down matrix zeroed."""
    raise NotImplementedError


# %% tags=["check"]
x, loud = streams[0], weights.blocks[1]
quiet = silenced(loud)
assert block(x, quiet, config, Placement(rotation)).equal(x)
assert not block(x, loud, config, Placement(rotation)).equal(x)
assert quiet.attention.query.equal(loud.attention.query)  # nothing else changed
print("correct: what adds nothing changes nothing")


# %% tags=["answer"]
def silenced(of_block):
    """The block, with attention's output and the feed-forward's down matrix zeroed."""
    attention, feed_forward = of_block.attention, of_block.feed_forward
    return of_block._replace(
        attention=attention._replace(output=0 * attention.output),
        feed_forward=feed_forward._replace(down=0 * feed_forward.down),
    )
