# %% [markdown]
# # Writing
#
# A Llama does not write. It says how likely each next token is, somebody picks one, and the
# text with that token is read again. This lesson is about the picking, and about how to read
# almost nothing again and yet get the same numbers.

# %%
import time

import matplotlib.pyplot as plt
import torch

import llucid
from llucid.cache import empty_cache
from llucid.generation import generator
from llucid.generation.sampling import draw, min_p, temperature, top_k, top_p
from llucid.llama import llama
from trained import fables_model

torch.set_grad_enabled(False)
model = fables_model()
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% [markdown]
# ## What may come next
#
# The last row of the logits belongs to the token that is not there yet. Its softmax is a
# probability for every token of the vocabulary:
#
# $$ p_i = \frac{e^{z_i}}{\sum_j e^{z_j}} $$

# %%
prompt = "One rainy morning, Nettle the quick fox"
ids = torch.tensor([tokenizer.encode(prompt)])
logits = llama(ids, weights, config)[:, -1]
print("ids", list(ids.shape), "-> logits of the last position", list(logits.shape), " batch vocab")
for token, _, probability in llucid.predict(model, prompt, top_k=6):
    print(f"{probability:6.1%}  {token!r}")

# %% [markdown]
# ## Temperature, and what to leave out
#
# Always taking the likeliest token is called greedy. It is repeatable, and dull: texts run into
# loops. Drawing by the probabilities is livelier, but the vocabulary is large, and among very
# many tokens that are each very unlikely, one is drawn rather often.
#
# Temperature divides the logits before the softmax. Below 1 it makes the likely likelier; towards
# 0 it becomes greedy. The other filters set the logits of some tokens to $-\infty$: `top_k`
# keeps the $k$ likeliest, `top_p` the fewest that together have probability $p$ (Holtzman et al.
# 2020), `min_p` those at least a share as likely as the likeliest. Each is a function from logits
# to logits, so they compose.

# %%
ways = {
    "as it is": logits,
    "temperature 0.5": temperature(logits, 0.5),
    "temperature 1.5": temperature(logits, 1.5),
    "top_k 3": top_k(logits, 3),
    "top_p 0.8": top_p(logits, 0.8),
    "min_p 0.2": min_p(logits, 0.2),
}
for name, changed in ways.items():
    p = changed.softmax(-1)[0]
    left = int((p > 0).sum())
    print(f"{name:16} {left:5} tokens left, the likeliest has {p.max():.1%}")

# %% tags=["picture"]
order = logits[0].argsort(descending=True)[:12]
names = [tokenizer.decode([token]).strip() or "␣" for token in order.tolist()]
tallest = max(changed.softmax(-1).max().item() for changed in ways.values())
figure, axes = plt.subplots(2, 3, figsize=(7.4, 4), sharex=True, sharey=True)
for ax, (name, changed) in zip(axes.flat, ways.items(), strict=True):
    p = changed.softmax(-1)[0, order].tolist()
    ax.bar(range(len(order)), p, color=["#2f5f9e" if value > 0 else "white" for value in p])
    for at, value in enumerate(p):
        if value == 0:
            ax.plot(at, 0.03 * tallest, "x", color="#d1622b", ms=4)
    ax.set(title=name, ylim=(0, 1.05 * tallest))
    ax.set_xticks(range(len(order)), names, rotation=60, ha="right", fontsize=8)
figure.supylabel("probability", fontsize=9.5)

# %% [markdown]
# Then one number is drawn between 0 and 1, and the first token whose cumulative probability is
# above it is chosen. The random numbers come from a generator of their own, so that the same
# seed gives the same text.

# %%
for seed in range(3):
    text = "".join(llucid.generate(model, prompt, max_tokens=24, temperature=0.8, seed=seed))
    print(f"seed {seed}: {prompt}{text}".replace("\n", "⏎"))
for t in (0.0, 0.8, 3.0):
    text = "".join(llucid.generate(model, prompt, max_tokens=24, temperature=t, top_p=None, seed=1))
    print(f"temperature {t}: {prompt}{text}".replace("\n", "⏎"))

# %% [markdown]
# ## The loop, plainly
#
# Read everything, pick, append, begin again. Nothing is left out:


# %%
def write_slowly(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy continuation; the whole text is read for every token."""
    for _ in range(count):
        logits = llama(ids, weights, config)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


written = write_slowly(ids, 30)
print(tokenizer.decode(written[0].tolist()))

# %% [markdown]
# ## The KV cache
#
# To write $n$ tokens that loop reads $1 + 2 + \ldots + n$. But look at what a token needs from
# the ones before it: their keys and values in each block, and nothing else. And these do not
# change when the text grows, because the mask lets no token see a later one (lesson 03). So
# they can be kept:

# %%
cache = empty_cache(config, batch=1, capacity=64, weights=weights)
logits_1, cache = llama(ids, weights, config, cache)
print("read", cache.length, "tokens; keys of a block", list(cache.keys[0].shape))

token = logits_1[:, -1:].argmax(-1)
logits_2, cache = llama(token, weights, config, cache)
print("read one more, shape", list(token.shape), "->", list(logits_2.shape), "; now", cache.length)

everything = llama(torch.cat([ids, token], 1), weights, config)
difference = (logits_2[:, -1] - everything[:, -1]).abs().max()
print(f"largest difference to reading it all: {difference:.1e}")
assert difference < 1e-4


# %% [markdown]
# The difference is rounding: sums of the same numbers in another order. In exact arithmetic
# there is none. Which is why the cache is no approximation, and needs no setting.
#
# Is it really so that earlier keys do not change? Read a text, and the same text with other
# tokens after it, and compare what was kept of the part they share:


# %%
def keys_of(ids: torch.Tensor) -> list[torch.Tensor]:
    """The keys of every block after reading ids."""
    cache = empty_cache(config, 1, ids.shape[1], weights)
    return list(llama(ids, weights, config, cache)[1].keys)


one, other = written, torch.cat([ids, written[:, : -ids.shape[1]].flip(1)], 1)
shared = ids.shape[1]
for layer, (a, b) in enumerate(zip(keys_of(one), keys_of(other), strict=True)):
    same = (a[:, :, :shared] - b[:, :, :shared]).abs().max()
    rest = (a[:, :, shared:] - b[:, :, shared:]).abs().max()
    print(f"block {layer}: keys differ by {same:.0e} in the shared part, by {rest:.1f} after it")


# %%
def write(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy continuation with the cache: each token is read once."""
    cache = empty_cache(config, 1, ids.shape[1] + count, weights)
    new, pieces = ids, [ids]
    for _ in range(count):
        logits, cache = llama(new, weights, config, cache)
        new = logits[:, -1:].argmax(-1)
        pieces.append(new)
    return torch.cat(pieces, 1)


assert write(ids, 30).equal(written)
greedy = "".join(llucid.generate(model, prompt, max_tokens=30, temperature=0))
assert prompt + greedy == tokenizer.decode(written[0].tolist())
print("the same tokens as the slow loop's, and as those of llucid.generate")

for count in (30, 110):
    began = time.perf_counter()
    write_slowly(ids, count)
    slow = time.perf_counter() - began
    began = time.perf_counter()
    write(ids, count)
    fast = time.perf_counter() - began
    print(f"{count:3} tokens: {slow:.2f} s reading all again, {fast:.2f} s with the cache")

# %% [markdown]
# In so small a model most of the time goes into calling functions, so the gain is modest. It grows
# with the text, and with the model: lesson 09 measures it.
#
# ## Exercises
#
# **1.** Write `nucleus(p, share)` for one list of probabilities: the set of indices of the fewest
# tokens that together have at least that share. Compare with `top_p`.


# %% tags=["answer"]
def nucleus(p: list[float], share: float) -> set[int]:
    """The likeliest, one after the other, until they have the share together."""
    kept, total = set(), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if total >= share:
            break
        kept.add(token)
        total += p[token]
    return kept


# %% tags=["check"]
assert nucleus([0.1, 0.6, 0.3], 0.5) == {1}
assert nucleus([0.1, 0.6, 0.3], 0.7) == {1, 2}
assert nucleus([0.5, 0.25, 0.25], 0.5) == {0}
p = logits.softmax(-1)[0]
for share in (0.3, 0.8, 0.95):
    left = (top_p(logits, share)[0] > -torch.inf).nonzero().flatten()
    assert nucleus(p.tolist(), share) == set(left.tolist()), share
print("holds")

# %% [markdown]
# **2.** Write `often(logits, count)`: draw so many tokens with `draw` (one generator, made by
# `generator(seed=0)`) and return how often each id came, as a tensor of shares. It should
# come near the softmax.


# %% tags=["answer"]
def often(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The share of each id among so many draws."""
    random = generator(seed=0)
    drawn = torch.cat([draw(logits, [random]) for _ in range(count)])
    return drawn.bincount(minlength=logits.shape[-1]) / count


# %% tags=["check"]
shares = often(logits, 4000)
assert shares.sum().isclose(torch.tensor(1.0))
assert (4000 * shares).allclose((4000 * shares).round(), atol=1e-2)  # how often is a whole number
# A share of n draws deviates by √(p(1−p)/n) ≤ 0.008; five times that practically never.
assert (shares - logits.softmax(-1)[0]).abs().max() < 0.04
print(f"holds: the likeliest has {p.max():.1%}, and came {shares[p.argmax()]:.1%} of the time")

# %% [markdown]
# **3.** How many tokens does the slow loop read to write `count` tokens after a prompt of `n`,
# and how many does the one with the cache? Write `read_slowly(n, count)` and `read_once(n, count)`.


# %% tags=["answer"]
def read_slowly(n: int, count: int) -> int:
    """n, then n + 1, and so on: all of the text for each token."""
    return sum(n + written for written in range(count))


def read_once(n: int, count: int) -> int:
    """The prompt, then each new token; the last one is never read."""
    return n + count - 1


# %% tags=["check"]
assert read_slowly(10, 1) == read_once(10, 1) == 10
assert read_slowly(10, 3) == 33
assert read_once(10, 3) == 12
print(f"holds: 1,000 after 1,000: {read_slowly(1000, 1000):,} and {read_once(1000, 1000):,}")
