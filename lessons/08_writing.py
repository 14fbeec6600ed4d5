# %% [markdown]
# # Writing
#
# A model gives probabilities; a program picks a token, appends it and asks again. This lesson is
# about the picking, and about the cache, thanks to which almost nothing has to be computed twice.
# At its end you have written the loop behind every chat program.

# %% tags=["setup"]
import time

import matplotlib.pyplot as plt
import torch

import llucid
from figures import whole_llama
from llucid.chat import STORYTELLER, encode_dialog
from llucid.llama import llama

torch.set_grad_enabled(False)
model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, weights, tokenizer = model.config, model.weights, model.tokenizer

# %% tags=["plot"]
# The whole Llama with output and softmax highlighted.
whole_llama("output", "loss")

# %% [markdown]
# ## What may come next
#
# We ask the storyteller for a tale about our fox and our bell. How a request becomes ids is the
# subject of lesson 9; here it is enough that they are ids.

# %%
request = [{"role": "user", "content": "Tell me a tale about a fox and a bell."}]
ids = torch.tensor([encode_dialog(request, tokenizer)])
logits = llama(ids, weights, config)[0, -1]
p = logits.softmax(-1)
print("ids", list(ids.shape), "-> logits of the last position", list(logits.shape))
for chance, token in zip(*p.topk(6), strict=True):
    print(f"{chance:6.1%}  {tokenizer.decode([token.item()])!r}")
others = 1 - p.topk(6).values.sum()
print(f"{others:6.1%}  all {len(p) - 6:,} others together")

# %% [markdown]
# There are several ways to begin a tale. Which to take? Always the likeliest is called *greedy*; it is
# repeatable and dull. Drawing by the probabilities is livelier. The storyteller knows exactly how its
# tales begin, so hardly anything is left for the other tokens. A model of real texts is never so sure:
# it gives a little to each of 100,000 tokens, which adds up, and one that does not fit is drawn fairly
# often. What can be done?
#
# ## Temperature, top-k, top-p, min-p
#
# *Temperature* $T$ divides the logits before the softmax. By hand for three scores:

# %%
z = torch.tensor([2.0, 1.0, 0.0])
for T in (0.5, 1.0, 2.0):
    print(f"T = {T}: {[round(share, 3) for share in (z / T).softmax(-1).tolist()]}")

# %% [markdown]
# Below 1 the likely becomes likelier; towards 0 it becomes greedy. The other ways leave tokens out,
# by setting their logits to $-\infty$: *top-k* keeps the $k$ likeliest, *min-p* those that are at
# least a share $m$ as likely as the likeliest, and *top-p* the fewest that have probability $p$
# together (Holtzman et al. 2020), which you write below.


# %%
def top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """−∞ for all but the k largest."""
    return logits.masked_fill(logits < logits.topk(k).values[-1], -torch.inf)


def min_p(logits: torch.Tensor, m: float) -> torch.Tensor:
    """−∞ for what is less than m times as likely as the likeliest."""
    p = logits.softmax(-1)
    return logits.masked_fill(p < m * p.max(), -torch.inf)


ways = {
    "as it is": logits,
    "temperature 0.5": logits / 0.5,
    "temperature 1.5": logits / 1.5,
    "top-k 3": top_k(logits, 3),
    "min-p 0.2": min_p(logits, 0.2),
}
for name, changed in ways.items():
    q = changed.softmax(-1)
    print(f"{name:16} {int((q > 0).sum()):5} tokens left, the likeliest has {q.max():.0%}")

# %% tags=["picture"]
# Probabilities of the first tokens of a tale: as they are, at two temperatures, and filtered.
order = logits.argsort(descending=True)[:12]
names = [tokenizer.decode([token]).strip() or "␣" for token in order.tolist()]
figure, axes = plt.subplots(1, 5, figsize=(7.4, 2.4), sharey=True)
for ax, (name, changed) in zip(axes, ways.items(), strict=True):
    ax.barh(range(len(order)), changed.softmax(-1)[order])
    ax.set_title(name, fontsize=9)
axes[0].set_yticks(range(len(order)), names, fontsize=8)
axes[0].invert_yaxis()
figure.supxlabel("probability", fontsize=9)

# %% [markdown]
# ## The loop
#
# Read everything, pick, append, begin again, until the token that means "I have finished":


# %%
def write(ids: torch.Tensor, count: int, pick) -> torch.Tensor:
    """At most `count` tokens after ids; the whole text is read for every token."""
    for _ in range(count):
        token = pick(llama(ids, weights, config)[0, -1])
        if token in tokenizer.stop_ids:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return ids


def greedy(logits: torch.Tensor) -> int:
    """The likeliest."""
    return int(logits.argmax())


def sampler(temperature: float, seed: int):
    """Draws at a temperature; the same seed draws the same."""
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: torch.Tensor) -> int:
        shares = min_p(logits / temperature, 0.05).softmax(-1)
        return int(torch.multinomial(shares, 1, generator=generator))

    return pick


for name, pick in (("greedy", greedy), ("seed 1", sampler(0.8, 1)), ("seed 2", sampler(0.8, 2))):
    tale = write(ids, 100, pick)[0, ids.shape[1] :].tolist()
    print(f"{name}: {tokenizer.decode(tale)}\n")

# %% [markdown]
# ## The KV cache
#
# To write $n$ tokens, that loop reads $1 + 2 + \ldots + n$. But what does a new token need from the
# ones before it? Their keys and values, and nothing else. And these do not change when the text
# grows, because no token sees a later one. So they can be kept. Here are the functions of lesson 6,
# with a position to begin at and with lists that are kept:


# %%
def norm(x, gain):
    """RMSNorm."""
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain


def turn(x, start):
    """RoPE for x of shape [heads, seq, head_dim] at positions start, start + 1, …"""
    theta = config.rope_theta ** (-2 * torch.arange(config.head_dim // 2) / config.head_dim)
    angle = (start + torch.arange(x.shape[1]))[:, None] * theta
    a, b = x[..., 0::2], x[..., 1::2]
    pairs = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
    return torch.stack(pairs, -1).flatten(-2)


def heads_of(x, count):
    """[seq, count · head_dim] -> [count, seq, head_dim]."""
    return x.unflatten(-1, (count, config.head_dim)).transpose(0, 1)


def cached_llama(ids, cache):
    """Scores of the new ids [seq]; `cache` has (keys, values) per block, and gets longer."""
    x = weights.embedding[ids]
    start = cache[0][0].shape[1] if cache else 0
    for layer, w in enumerate(weights.blocks):
        y, of = norm(x, w.attention_norm), w.attention
        q = turn(heads_of(y @ of.query.T, config.heads), start)
        k = turn(heads_of(y @ of.key.T, config.kv_heads), start)
        v = heads_of(y @ of.value.T, config.kv_heads)
        if layer < len(cache):
            k, v = torch.cat([cache[layer][0], k], 1), torch.cat([cache[layer][1], v], 1)
            cache[layer] = (k, v)
        else:
            cache.append((k, v))
        k, v = (t.repeat_interleave(config.heads // config.kv_heads, 0) for t in (k, v))
        later = torch.ones(len(x), k.shape[1], dtype=torch.bool).triu(1 + start)
        scores = (q @ k.mT / config.head_dim**0.5).masked_fill(later, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(-2) @ of.output.T
        y, f = norm(x, w.feed_forward_norm), w.feed_forward
        x = x + (torch.nn.functional.silu(y @ f.gate.T) * (y @ f.up.T)) @ f.down.T
    output = weights.embedding if weights.output is None else weights.output
    return norm(x, weights.norm) @ output.T


cache = []
first = cached_llama(ids[0], cache)
print("read", len(ids[0]), "tokens; keys of a block", list(cache[0][0].shape))
token = first[-1].argmax(keepdim=True)
second = cached_llama(token, cache)
print("read one more:", list(second.shape), "scores; keys", list(cache[0][0].shape))
everything = llama(torch.cat([ids[0], token])[None], weights, config)[0, -1]
print(f"largest difference to reading it all: {(second[-1] - everything).abs().max():.1e}")
assert torch.allclose(second[-1], everything, atol=2e-3)

# %% [markdown]
# The difference is rounding. The cache is no approximation. With it, each token is read once:


# %%
def write_cached(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy, with the cache."""
    cache, new, text = [], ids[0], ids[0]
    for _ in range(count):
        new = cached_llama(new, cache)[-1].argmax(keepdim=True)
        if new.item() in tokenizer.stop_ids:
            break
        text = torch.cat([text, new])
    return text[None]


assert write_cached(ids, 60).equal(write(ids, 60, greedy))

# %% [markdown]
# What does one more token cost after 50, 150 and 450 others, reading all again or with the cache? We
# take the shortest of some times: other programs can only make it longer, and so does a first call.

# %%
long = torch.randint(100, 1000, (1, 450), generator=torch.Generator().manual_seed(0))
for before in (50, 150, 450):
    cache, times = [], []
    cached_llama(long[0, :before], cache)
    for cached in (False, True):
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            if cached:
                cached_llama(token, list(cache))
            else:
                llama(long[:, :before], weights, config)
            taken.append(time.perf_counter() - started)
        times.append(min(taken))
    print(f"after {before:3}: {1000 * times[0]:6.2f} ms reading all again, {1000 * times[1]:6.2f} ms cached")

# %% [markdown]
# The gain grows with the text and with the model: all of a text of 8,000 tokens, or one token.
#
# `llucid.generate` is this loop with a cache that is allocated once; on a CPU the loop is written in C.
# Greedy, it writes what you wrote:

# %%
prompt = "One winter night, when the wind had teeth,"
by_llucid = "".join(llucid.generate(model, prompt, max_tokens=20, temperature=0))
start = torch.tensor([[tokenizer.bos, *tokenizer.encode(prompt)]])  # the mark of the beginning, lesson 0
by_hand = tokenizer.decode(write(start, 20, greedy)[0, start.shape[1] :].tolist())
print(prompt + by_llucid)
assert by_llucid == by_hand

# %% [markdown]
# ## Exercises
#
# **1.** Write `nucleus(p, share)` for a list of probabilities: the set of indices of the fewest tokens
# that together have at least this share. That is top-p. (llucid's `top_p` does as Meta's code: where
# a sum equals the share exactly, it keeps one token more.)

# %% tags=["exercise"]


def nucleus(p: list[float], share: float) -> set[int]:
    """The likeliest, one after the other, until they have the share."""
    raise NotImplementedError


# %% tags=["check"]
assert nucleus([0.1, 0.6, 0.3], 0.5) == {1}
assert nucleus([0.1, 0.6, 0.3], 0.7) == {1, 2}  # the one that crosses the share belongs to it
assert nucleus([0.5, 0.25, 0.25], 0.5) == {0}
assert nucleus([0.25, 0.25, 0.5], 1.0) == {0, 1, 2}
print(f"correct: of a tale's first token, {len(nucleus(p.tolist(), 0.9))} make up 90 %")


# %% tags=["answer"]
def nucleus(p: list[float], share: float) -> set[int]:
    """The likeliest, one after the other, until they have the share."""
    kept, total = set(), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if total >= share:
            break
        kept.add(token)
        total += p[token]
    return kept


# %% [markdown]
# **2.** How many tokens are read to write `count` tokens after a prompt of `n`, without and with the
# cache? Write `read_again(n, count)` and `read_once(n, count)`. The last token written is never read.

# %% tags=["exercise"]


def read_again(n: int, count: int) -> int:
    """Without a cache."""
    raise NotImplementedError


def read_once(n: int, count: int) -> int:
    """With a cache."""
    raise NotImplementedError


# %% tags=["check"]
assert read_again(10, 1) == read_once(10, 1) == 10
assert read_again(10, 3) == 33
assert read_once(10, 3) == 12
print(f"correct: 1,000 after 1,000: {read_again(1000, 1000):,} and {read_once(1000, 1000):,}")


# %% tags=["answer"]
def read_again(n: int, count: int) -> int:
    """Without a cache."""
    return sum(n + written for written in range(count))


def read_once(n: int, count: int) -> int:
    """With a cache."""
    return n + count - 1
