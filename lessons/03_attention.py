# %% [markdown]
# # Attention
#
# Attention is the only part of a Llama in which tokens meet. Each token asks a question, earlier
# tokens answer it more or less well, and what they say is mixed in proportion. We compute it by
# hand with four small vectors, then find the head of a trained model that makes it say "bell".

# %% tags=["setup"]
import math

import matplotlib.pyplot as plt
import torch

import llucid
from figures import boxes, whole_llama
from llucid import PRESETS
from llucid.chat import STORYTELLER
from llucid.corpora import open_corpus
from llucid.ladder import RUNGS
from llucid.llama import Placement, llama, rms_norm, rope_frequencies, rotate, rotations
from llucid.llama import block as run_block
from llucid.weights import leaves

# %% tags=["plot"]
# The whole Llama with attention highlighted.
whole_llama("attention")

# %% [markdown]
# ## A mixture, by hand
#
# Four tokens, two numbers each. The last token wants to know something; the others have something
# to say. How much should it take from each? Let us say: according to how well they fit, and a *dot
# product* measures that: it is large if two vectors are long and point in the same direction.

# %%
x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 1.0]])  # the fox rang the
scores = x @ x[3]  # how well each fits the last
print("scores ", scores.tolist())

# %% [markdown]
# A softmax (lesson 0) makes shares of the scores, and the shares mix the vectors:

# %%
shares = scores.softmax(-1)
print("shares ", [round(share, 3) for share in shares.tolist()], "sum", shares.sum().item())
mixture = shares @ x
print("mixture", [round(number, 3) for number in mixture.tolist()])

by_hand = [math.exp(s) for s in (0, 2, 1, 1)]
assert torch.allclose(shares, torch.tensor(by_hand) / sum(by_hand))

# %% [markdown]
# That is attention. Three refinements are missing.
#
# ## Query, key, value
#
# To fit and to be useful are different things. So each token's vector is multiplied by three
# matrices, which are learned. They give a *query* (what am I looking for?), a *key* (what do I
# offer?) and a *value* (what do I say if I am chosen?):
#
# $$ q = W_q\,x \qquad k = W_k\,x \qquad v = W_v\,x $$
#
# Queries are compared with keys, and values are mixed. With $d$ the number of coordinates of a key
# (Vaswani et al. 2017, eq. 1):
#
# $$ \mathrm{Attention}(q, k, v) = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{d}}\right) v $$


# %%
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every query gathers from all values."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
q, k, v = x @ swap, x, 10 * x  # matrices chosen by hand
print(attend(q, k, v))

# %% [markdown]
# ## Why divide by √d
#
# The dot product of two vectors of $d$ independent numbers with variance 1 has variance $d$.
# Without the division, scores grow with the width, and the softmax gives nearly everything to one
# key. Then a gradient can hardly change its choice. How many of 100 keys take part?

# %%
generator = torch.Generator().manual_seed(0)


def keys_taking_part(p: torch.Tensor) -> torch.Tensor:
    """e to the entropy of each row: n for n equal shares, 1 for a single one."""
    return (-torch.xlogy(p, p).sum(-1)).exp()


for width in (4, 64, 1024):
    a, b = torch.randn(2, 100, width, generator=generator)
    raw, divided = (a @ b.T).softmax(-1), (a @ b.T / math.sqrt(width)).softmax(-1)
    spread = keys_taking_part(raw).mean(), keys_taking_part(divided).mean()
    print(f"d = {width:4}: {spread[0]:5.1f} keys, divided by √d {spread[1]:5.1f}")

# %% [markdown]
# ## The mask
#
# A model is trained to predict the next token at every position at once. If a token could look
# ahead, it would read the answer. So scores of later tokens become $-\infty$, and their
# shares 0:

# %%
later = torch.ones(4, 4, dtype=torch.bool).triu(1)
scores = (q @ k.mT / math.sqrt(2)).masked_fill(later, -math.inf)
print(scores)
print(scores.softmax(-1))

# %% [markdown]
# Is the mask really needed? The ladder's third rung is a model without it, the fourth the same
# with it. Both are trained here on characters of fables, with the same few lines (lesson 7
# explains them):

# %%
corpus = open_corpus(["fables"])
characters = sorted(set(next(corpus.text("train"))))
index = {character: at for at, character in enumerate(characters)}
train = torch.tensor([index[c] for c in next(corpus.text("train"))[:200_000]])
config = llucid.Config(
    dim=48, layers=1, heads=1, kv_heads=1, head_dim=48, ffn_dim=96,
    vocab_size=len(characters), context=32,
)  # fmt: skip


def loss_after_training(rung, steps: int = 200):
    """The weights and the mean loss of the last twenty steps."""
    weights, losses = rung.init(config, 0), []
    for leaf in leaves(weights):
        leaf.requires_grad_()
    optimizer = torch.optim.AdamW(leaves(weights), lr=0.01)
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(train) - config.context - 1, (16, 1), generator=random)
        rows = train[starts + torch.arange(config.context + 1)]
        loss = rung.loss(rows[:, :-1], rows[:, 1:], weights, config) / rows[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return weights, sum(losses[-20:]) / 20


def written(rung, weights, count: int = 60) -> str:
    """Likely characters, one after the other."""
    ids = [index[c] for c in "The fox"]
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(count):
            scores = rung.logits(torch.tensor([ids[-32:]]), weights, config)[0, -1]
            ids.append(torch.multinomial((scores / 0.8).softmax(-1), 1, generator=random).item())
    return "".join(characters[at] for at in ids).replace("\n", "⏎")


results = {}
for rung in RUNGS[2:4]:
    weights, results[rung.name] = loss_after_training(rung)
    print(f"{rung.name}: loss {results[rung.name]:.2f}, writes {written(rung, weights)!r}")
assert results["Cheating head"] < results["Causal mask"] / 2

# %% [markdown]
# The cheat has the far smaller loss, and it writes worse: where the text ends, there is no next
# character to read. A small loss is worth something only if the model could not see the answer.
#
# ## Heads
#
# One softmax can look for one thing. So there are several *heads*, each with its own queries,
# keys and values; their results are joined and mixed by an output matrix. In the storyteller:

# %%
torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
c, tokenizer = model.config, model.tokenizer
block = model.weights.blocks[0].attention
print(f"dim {c.dim} = {c.heads} heads of {c.head_dim}")
print("query", list(block.query.shape), "key", list(block.key.shape), " rows of all heads, dim")

# %% [markdown]
# ## Who looks where
#
# We want to see the shares, *attention weights*, of every head while the model reads our text. Two
# more parts are needed for that, a norm before and a rotation of queries and keys; the next two
# lessons explain them. Here they are called by name.

# %%
text = "The fox rang the bell. The fox rang the"


def attention_weights(text: str) -> torch.Tensor:
    """The shares of every head: layers heads seq seq."""
    ids = torch.tensor([tokenizer.encode(text)])
    x, found = model.weights.embedding[ids], []
    rotation = rotations(torch.arange(ids.shape[1])[None], rope_frequencies(c, x))
    later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for layer in model.weights.blocks:
        normed = rms_norm(x, layer.attention_norm, c.norm_eps)
        q = (normed @ layer.attention.query.T).unflatten(-1, (c.heads, -1)).transpose(1, 2)
        k = (normed @ layer.attention.key.T).unflatten(-1, (c.kv_heads, -1)).transpose(1, 2)
        k = k.repeat_interleave(c.heads // c.kv_heads, 1)
        scores = rotate(q, rotation) @ rotate(k, rotation).mT / math.sqrt(c.head_dim)
        found.append(scores.masked_fill(later, -math.inf).softmax(-1)[0])
        x = run_block(x, layer, c, Placement(rotation))
    return torch.stack(found)


maps = attention_weights(text)
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
# first column: it looks at the first token, which often means that it found nothing. We measure
# instead of guessing:

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
pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
bell = pieces.index(" bell")
on_bell = maps[:, :, -1, bell]
layer, head = divmod(int(on_bell.argmax()), heads)
print(f"block {layer}, head {head} looks at 'bell' with {on_bell.max():.0%}")
assert on_bell.max() > 0.3
assert layer > 0

# %% tags=["plot"]
# Where the last token looks, by the induction head: mostly at "bell".
figure, ax = plt.subplots(figsize=(7.4, 0.7))
strength = maps[layer, head, -1]
boxes(ax, pieces, plt.get_cmap("Blues")(0.85 * strength.sqrt().numpy()), width=44)

# %% [markdown]
# Is it the cause? Take this head away, by setting its columns of the output matrix to zero, and ask
# again:


# %%
def without(layer: int, head: int):
    """The weights with one head silenced."""
    blocks = list(model.weights.blocks)
    output = blocks[layer].attention.output.clone()
    output[:, head * c.head_dim : (head + 1) * c.head_dim] = 0
    attention = blocks[layer].attention._replace(output=output)
    blocks[layer] = blocks[layer]._replace(attention=attention)
    return model.weights._replace(blocks=tuple(blocks))


ids = torch.tensor([tokenizer.encode(text)])
target = tokenizer.encode(" bell")[0]
chance = llama(ids, model.weights, c)[0, -1].softmax(-1)[target].item()
others = {
    (at, number): llama(ids, without(at, number), c)[0, -1].softmax(-1)[target].item()
    for at in range(layers)
    for number in range(heads)
}
print(f"whole model: bell {chance:.0%}")
for (at, number), left in sorted(others.items(), key=lambda pair: pair[1])[:4]:
    print(f"without block {at}, head {number}: bell {left:.0%}")
assert others[layer, head] < chance / 2

# %% [markdown]
# The head that looks at *bell* is needed, and so is the one that looks one token back most, which had
# to tell *bell* what stood before it:

# %%
back = divmod(int(kinds["the token before"].argmax()), heads)
print(f"the head that looks back is block {back[0]}, head {back[1]}: without it, {others[back]:.0%}")
assert back[0] < layer
assert others[back] < chance / 2

# %% [markdown]
# Two heads in two blocks that work together are a *circuit*. Nobody built it; it was the way to a
# smaller loss.
#
# ## Fewer keys
#
# When a model writes, the keys and values of all earlier tokens are kept in memory and read
# for each new token (lesson 8). *Grouped-query attention* (Ainslie et al. 2023) lets several
# query heads share one key and value head. What has to be kept, in 16 bits, for one full context:

# %%
print(f"{'':12} heads  kv_heads   a token     a context")
for name in ("llama-2-7b", "llama-2-70b", "llama-3-8b", "llama-3-70b"):
    of = PRESETS[name].config
    token = 2 * 2 * of.layers * of.kv_heads * of.head_dim  # key and value, two bytes each
    size = f"{token / 1024:6.0f} KiB {token * of.context / 2**30:8.2f} GiB"
    print(f"{name:12} {of.heads:5} {of.kv_heads:9}  {size}")

# %% [markdown]
# ## Exercises
#
# **1.** Write `causal(n)`: a square of truth values, true where a query (row) may look at a key
# (column).

# %% tags=["exercise"]


def causal(n: int) -> torch.Tensor:
    """True where the key is not later than the query."""
    raise NotImplementedError


# %% tags=["check"]
assert causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
assert causal(5).sum() == 15
print("correct")


# %% tags=["answer"]
def causal(n: int) -> torch.Tensor:
    """True where the key is not later than the query."""
    return torch.ones(n, n, dtype=torch.bool).tril()


# %% [markdown]
# **2.** Write `masked_attention(q, k, v)`: `attend` with the mask, for vectors of shape `[n, d]`.

# %% tags=["exercise"]


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every query gathers from the values of its own and earlier positions."""
    raise NotImplementedError


# %% tags=["check"]
q, k, v = torch.randn(3, 6, 8, generator=generator)
result = masked_attention(q, k, v)
assert torch.allclose(result[0], v[0])  # the first token sees only itself
assert torch.allclose(result[5], attend(q, k, v)[5], atol=1e-5)  # the last sees all
assert torch.allclose(result[2], attend(q[:3], k[:3], v[:3])[2], atol=1e-5)
print("correct")


# %% tags=["answer"]
def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every query gathers from the values of its own and earlier positions."""
    scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~causal(len(q)), -math.inf)
    return scores.softmax(-1) @ v


# %% [markdown]
# **3.** Write `cache_bytes(config, tokens)`: the bytes of keys and values of that many tokens in
# 16 bits, in all layers.

# %% tags=["exercise"]


def cache_bytes(config: llucid.Config, tokens: int) -> int:
    """Keys and values, two bytes per number."""
    raise NotImplementedError


# %% tags=["check"]
assert cache_bytes(PRESETS["llama-3-8b"].config, 8192) == 2**30
assert cache_bytes(PRESETS["llama-2-7b"].config, 4096) == 2**31
print(f"correct: the storyteller keeps {cache_bytes(c, 1):,} bytes per token")


# %% tags=["answer"]
def cache_bytes(config: llucid.Config, tokens: int) -> int:
    """Keys and values, two bytes per number."""
    return 2 * 2 * tokens * config.layers * config.kv_heads * config.head_dim
