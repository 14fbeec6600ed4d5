# %% [markdown]
# # Write llama yourself
#
# You have met every part. Now put them together: the whole Llama in twenty lines of your own, from
# ids to scores, with the weights of the storyteller. If it is right, it gives the same numbers as
# llama.py, and says *bell*. Then we look for the heads that make it say so.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch

import llucid
from figures import boxes, whole_llama
from llucid.chat import STORYTELLER
from llucid.llama import Placement, attention, block, llama, rope_frequencies, rotations
from llucid.weights import initialise, named_leaves, tree_map

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% tags=["plot"]
# The whole Llama; all that makes scores is highlighted, everything but softmax and loss.
whole_llama("tokens", "embedding", "block", "norm", "attention", "position", "feed-forward", "output")

# %% [markdown]
# ## What you are given
#
# The weights are a tree of named tuples, and the config holds the numbers. Matrices are stored as
# `[out, in]`, so a row vector goes through one as `x @ W.T`.

# %%
print("weights.embedding", list(weights.embedding.shape))
print("weights.blocks   ", len(weights.blocks), "of them; in each:")
one = weights.blocks[0]
for name, array in named_leaves(one):
    print(f"    {name:18} {list(array.shape)}")
print("weights.norm     ", list(weights.norm.shape))
print("weights.output   ", "None: the embedding is used" if weights.output is None else "a matrix")
print({name: getattr(config, name) for name in ("heads", "kv_heads", "head_dim", "rope_theta")})

# %% [markdown]
# ## The parts
#
# You may use what you wrote in the lessons before. Here it is again, for one text (no batch axis).


# %%
def norm(x, gain, config):
    """RMSNorm, lesson 5."""
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain


def turn(x, config):
    """RoPE, lesson 4, for x of shape [heads, seq, head_dim] at positions 0, 1, 2 and so on."""
    half = torch.arange(config.head_dim // 2, dtype=x.dtype)
    theta = config.rope_theta ** (-2 * half / config.head_dim)
    angle = torch.arange(x.shape[1])[:, None] * theta
    a, b = x[..., 0::2], x[..., 1::2]
    pairs = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
    return torch.stack(pairs, -1).flatten(-2)


def heads_of(x, count):
    """[seq, count · head_dim] -> [count, seq, head_dim]."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


# %% [markdown]
# ## Exercises
#
# **1.** Write `my_attention(x, w, config)`: queries, keys and values of all heads, RoPE on queries and
# keys, scores divided by $\sqrt{d}$, the mask, softmax, the mixture, and the output matrix. If there
# are fewer key heads than query heads, `repeat_interleave` repeats each of them. The storyteller has
# as many, so the check also takes a small random model with two key heads for four query heads.

# %% tags=["exercise"]


def my_attention(x, w, config):
    """[seq, dim] -> [seq, dim], with the weights w (query, key, value, output)."""
    raise NotImplementedError


# %% tags=["check"]
small = llucid.Config(
    dim=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=50, context=16,
)  # fmt: skip
random = tree_map(lambda leaf: 10 * leaf, initialise(small, seed=0))  # larger, for sharper attention
for c, w in ((config, one.attention), (small, random.blocks[0].attention)):
    x = torch.randn(9, c.dim, generator=torch.Generator().manual_seed(0))
    rotation = rotations(torch.arange(9)[None], rope_frequencies(c, x))
    expected = attention(x[None], w, c, Placement(rotation))[0]
    assert torch.allclose(my_attention(x, w, c), expected, atol=1e-4 * expected.abs().max())
    print(f"correct: {c.heads} heads, {c.kv_heads} for keys, {list(x.shape)} -> {list(expected.shape)}")


# %% tags=["answer"]
def my_attention(x, w, config):
    """[seq, dim] -> [seq, dim], with the weights w (query, key, value, output)."""
    q = turn(heads_of(x @ w.query.T, config.heads), config)
    k = turn(heads_of(x @ w.key.T, config.kv_heads), config)
    v = heads_of(x @ w.value.T, config.kv_heads)
    k, v = (t.repeat_interleave(config.heads // config.kv_heads, 0) for t in (k, v))
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = (q @ k.mT / config.head_dim**0.5).masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(-2) @ w.output.T


# %% [markdown]
# **2.** Write `my_llama(ids, weights, config)`: the embedding, all blocks (use `my_attention`, and write
# SwiGLU in place), the last norm, the output matrix.

# %% tags=["exercise"]


def my_llama(ids, weights, config):
    """[seq] -> [seq, vocab]: the scores of every next token."""
    raise NotImplementedError


# %% tags=["check"]
text = "The fox rang the bell. The fox rang the"
ids = torch.tensor([tokenizer.bos, *tokenizer.encode(text)])
mine, real = my_llama(ids, weights, config), llama(ids[None], weights, config)[0]
print(f"largest difference {(mine - real).abs().max():.1e}, of scores up to {real.abs().max():.1f}")
assert torch.allclose(mine, real, atol=2e-3)
assert tokenizer.decode([mine[-1].argmax().item()]) == " bell"
print("correct: The fox rang the bell. The fox rang the bell")


# %% tags=["answer"]
def my_llama(ids, weights, config):
    """[seq] -> [seq, vocab]: the scores of every next token."""
    x = weights.embedding[ids]
    for w in weights.blocks:
        x = x + my_attention(norm(x, w.attention_norm, config), w.attention, config)
        y, f = norm(x, w.feed_forward_norm, config), w.feed_forward
        x = x + (torch.nn.functional.silu(y @ f.gate.T) * (y @ f.up.T)) @ f.down.T
    output = weights.embedding if weights.output is None else weights.output
    return norm(x, weights.norm, config) @ output.T


# %% [markdown]
# That is a Llama. The same code with larger matrices is Llama 3 70B; for Llama 3.1 and its 405B, `turn`
# would also have to slow the slow pairs (lesson 4). Now read [`llucid/llama.py`](../llucid/llama.py):
# it has the same functions, with a batch axis, a cache, and the papers and equation numbers that they
# come from.
#
# ## Where the difference comes from
#
# The two are not equal bit for bit. The same sums in another order are rounded differently; in 64
# bits the difference almost disappears:

# %%
differences = []
for dtype in (torch.float32, torch.float64):
    of = llucid.load(STORYTELLER, dtype=dtype, device="cpu").weights
    real = llama(ids[None], of, config)[0]
    differences.append((my_llama(ids, of, config) - real).abs().max().item())
    print(f"{dtype!s:14} largest difference {differences[-1]:.1e}")
assert differences[1] < 1e-3 * differences[0]

# %% tags=["plot"]
# Your scores and those of llama.py for all tokens at the last position lie on one line.
figure, ax = plt.subplots(figsize=(3.6, 3.4))
ax.scatter(llama(ids[None], weights, config)[0, -1], my_llama(ids, weights, config)[-1], s=3)
ax.set(xlabel="score by llama.py", ylabel="score by my_llama", aspect="equal")
ax.grid()

# %% [markdown]
# ## Who looks where
#
# Now that the model is open before us: which head makes it say *bell*? We want to see the shares of lesson
# 3, the *attention weights*, of every head while the model reads our text.


# %%
def attention_weights(ids: torch.Tensor) -> torch.Tensor:
    """The shares of every head: layers heads seq seq."""
    x, found = weights.embedding[ids], []
    rotation = rotations(torch.arange(len(ids))[None], rope_frequencies(config, x))
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for layer in weights.blocks:
        normed = norm(x, layer.attention_norm, config)
        q = turn(heads_of(normed @ layer.attention.query.T, config.heads), config)
        k = turn(heads_of(normed @ layer.attention.key.T, config.kv_heads), config)
        k = k.repeat_interleave(config.heads // config.kv_heads, 0)
        scores = q @ k.mT / config.head_dim**0.5
        found.append(scores.masked_fill(later, -torch.inf).softmax(-1))
        x = block(x[None], layer, config, Placement(rotation))[0]
    return torch.stack(found)


maps = attention_weights(ids)
layers, heads = maps.shape[:2]
print("attention weights", list(maps.shape), " layers heads query key")
assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:3]))

# %% tags=["picture"]
# Attention weights of all heads of the storyteller: each square is a head, rows look at columns.
figure, axes = plt.subplots(layers, heads, figsize=(7.4, 5.5 * layers / heads + 0.3), squeeze=False)
for layer in range(layers):
    for head in range(heads):
        ax = axes[layer, head]
        ax.imshow(maps[layer, head].sqrt(), vmin=0, vmax=1, interpolation="none")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"block {layer}, head {head}", fontsize=7, loc="center", pad=2)
figure.supxlabel("rows look at columns; dark is much", fontsize=8)

# %% [markdown]
# Some patterns have names. A line just below the diagonal: the head looks one token back. A dark
# first column, which larger models often have: it looks at the first token, the mark of the beginning,
# since it has found nothing. We measure instead of guessing:

# %%
n = maps.shape[-1]
kinds = {
    "the token before": maps.diagonal(-1, -2, -1).mean(-1),
    "itself": maps.diagonal(0, -2, -1)[..., 1:].mean(-1),
    "the first token": maps[..., 3:, 0].mean(-1),
}
for title, share in kinds.items():
    layer, head = divmod(int(share.argmax()), heads)
    print(f"{title:17} most: block {layer}, head {head}, {share.max():.0%} of its attention")

# %% [markdown]
# And which head knows about the bell? To continue "the fox rang the", a head at the last token
# should look at the token that followed the same words before: *bell*. Such a head is called an
# *induction head* (Olsson et al. 2022). It works together with a head of an earlier block that looks
# one token back, and so tells *bell* that it came after *the*.

# %%
pieces = ["<begin>", *(tokenizer.decode([token]) for token in ids[1:].tolist())]
bell = pieces.index(" bell")
on_bell = maps[:, :, -1, bell]
layer, head_at = divmod(int(on_bell.argmax()), heads)
print(f"block {layer}, head {head_at} looks at 'bell' with {on_bell.max():.0%}")
assert on_bell.max() > 0.2
assert layer > 0

# %% tags=["plot"]
# Where the last token looks, by the induction head: mostly at "bell".
figure, ax = plt.subplots(figsize=(7.4, 0.5))
strength = maps[layer, head_at, -1]
boxes(ax, pieces, plt.get_cmap("Blues")(0.85 * strength.sqrt().numpy()), width=47)

# %% [markdown]
# Is it the cause? Take heads away, by setting their columns of the output matrix to zero, and ask again:
# first each alone, then together all that look at *bell* with more than 30%.


# %%
def without(*silent: tuple[int, int]):
    """The weights with some heads silenced, each given as (block, head)."""
    blocks = list(weights.blocks)
    for at, head in silent:
        output = blocks[at].attention.output.clone()
        output[:, head * config.head_dim : (head + 1) * config.head_dim] = 0
        attention = blocks[at].attention._replace(output=output)
        blocks[at] = blocks[at]._replace(attention=attention)
    return weights._replace(blocks=tuple(blocks))


def chance(weights) -> float:
    """The probability of bell."""
    target = tokenizer.encode(" bell")[0]
    return llama(ids[None], weights, config)[0, -1].softmax(-1)[target].item()


each = [(at, number) for at in range(layers) for number in range(heads)]
alone = {head: chance(without(head)) for head in each}
print(f"whole model: bell {chance(weights):.0%}")
for head, left in sorted(alone.items(), key=lambda pair: pair[1])[:3]:
    print(f"without block {head[0]}, head {head[1]}: bell {left:.0%}")
lookers = [head for head in each if on_bell[head] > 0.3]
print(f"without {lookers}: bell {chance(without(*lookers)):.0%}")
assert (layer, head_at) in lookers
assert chance(without(*lookers)) < chance(weights) / 2

# %% [markdown]
# A head may be missed little if another does the same work. Together they are needed, and so are the
# heads of earlier blocks that look one token back, which had to tell *bell* what stood before it. These
# spend more than 33% of their attention on the token before:

# %%
back = [head for head in each if head[0] < layer and kinds["the token before"][head] > 0.33]
print(f"without {back}: bell {chance(without(*back)):.0%}")
assert chance(without(*back)) < chance(weights) / 2

# %% [markdown]
# Heads of two blocks that work together are a *circuit*. Nobody built it; it was the way to a
# smaller loss.
