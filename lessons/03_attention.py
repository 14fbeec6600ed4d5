# %% [markdown]
# # Attention
#
# Attention is the only part of a Llama in which tokens meet. Each token asks a question, earlier
# tokens answer it more or less well, and what they say is mixed in proportion. We compute it by
# hand with four small vectors, and see a model that was allowed to look at the answer.

# %% tags=["setup"]
import math

import matplotlib.pyplot as plt
import torch

import llucid
from figures import whole_llama
from llucid import PRESETS
from llucid.chat import STORYTELLER
from llucid.corpora import open_corpus
from llucid.ladder import RUNGS
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
# That is attention. Five things are still missing to make it a Llama's: queries, keys and values in
# place of the vectors themselves, a division, a mask, several heads, and a way to keep fewer keys.
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
gathered = attend(q, k, v)
for word, row in zip("the fox rang the".split(), gathered.tolist(), strict=True):
    print(f"{word:5}", [round(number, 2) for number in row])

# %% [markdown]
# The last row by hand: its query is (1, 0), so its scores are the first numbers of the four keys, 1,
# 0, 1 and 0, divided by $\sqrt{2}$. $e^{0.707} = 2.03$ and $e^0 = 1$, so the shares are 2.03, 1, 2.03
# and 1 over their sum, 6.06. They mix the values (10, 0), (0, 20), (10, 10) and (0, 10):

# %%
a, b = math.exp(1 / math.sqrt(2)), 1.0
total = a + b + a + b
last = [(10 * a + 10 * a) / total, (20 * b + 10 * a + 10 * b) / total]
print("the", [round(number, 2) for number in last])
assert torch.allclose(gathered[3], torch.tensor(last))

# %% [markdown]
# ## Why divide by √d
#
# The dot product of two vectors of $d$ independent numbers with variance 1 has variance $d$.
# Without the division, scores grow with the width, and the softmax gives nearly everything to one
# key. Then a gradient can hardly change its choice. How many of 100 keys take part? We count them as
# perplexity counts tokens (lesson 1): $e$ to the mean surprise $-\sum_i p_i \ln p_i$ of the shares,
# which is $n$ if $n$ keys have equal shares, and 1 if one key has everything.

# %%
generator = torch.Generator().manual_seed(0)


def keys_taking_part(p: torch.Tensor) -> torch.Tensor:
    """e to the mean surprise of each row of shares (0 ln 0 counts as 0)."""
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

# %% tags=["picture"]
# Scores, masked scores and shares of four tokens: each row is a query, each column a key.
words = ["the", "fox", "rang", "the"]
raw = q @ k.mT / math.sqrt(2)
steps = {"scores": raw, "masked": scores, "shares (softmax)": scores.softmax(-1)}
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6))
for ax, (title, values) in zip(axes, steps.items(), strict=True):
    ax.imshow(values.masked_fill(values == -math.inf, math.nan), vmin=0, vmax=raw.max())
    ax.set_xticks(range(4), words)
    ax.set_yticks(range(4), words)
    ax.set(title=title, xlabel="key", ylabel="query" if title == "scores" else "")
    for row in range(4):
        for column in range(4):
            value = values[row, column].item()
            shown = "−∞" if value == -math.inf else f"{value:.2f}"
            dark = value > 0.7 * raw.max()
            ax.text(column, row, shown, ha="center", va="center", size=8, color="white" if dark else "black")

# %% [markdown]
# Is the mask really needed? The ladder's third rung is a model without it, the fourth the same
# with it. Both are trained here on characters of fables, by steps like those of lesson 1 (an
# optimizer chooses their size, as lesson 7 explains):

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
# ## Fewer keys
#
# When a model writes, the keys and values of all earlier tokens are kept in memory and read
# for each new token (lesson 8). *Grouped-query attention* (Ainslie et al. 2023) lets several
# query heads share one key and value head. What has to be kept, in 16 bits, for one full context:

# %%
print(f"{'':12} heads  kv_heads   a token     context   a context")
for name in ("llama-2-7b", "llama-2-70b", "llama-3-8b", "llama-3-70b"):
    of = PRESETS[name].config
    token = 2 * 2 * of.layers * of.kv_heads * of.head_dim  # key and value, two bytes each
    size = f"{token / 1024:6.0f} KiB {of.context:9,} {token * of.context / 2**30:8.2f} GiB"
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
