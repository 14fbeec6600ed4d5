# %% [markdown]
# # Looking inside
#
# In lesson 6 we computed attention by hand to see it. `llucid.look` does that for every value: it runs
# the source of llama.py and keeps what each expression gave. We use it to follow *bell* through
# the model, part by part, and to change the model while it thinks.
#
# The same text as a page: `llucid look storyteller "The fox rang the bell. The fox rang the"`. It is also
# there as one file, [docs/look.html](../docs/look.html): download it, and a browser opens it from disk.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch

import llucid
from llucid.chat import STORYTELLER
from llucid.llama import llama
from llucid.look import ablate, head_scores, patch, trace

model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
tokenizer = model.tokenizer
text = "The fox rang the bell. The fox rang the"
ids, bell = [tokenizer.bos, *tokenizer.encode(text)], tokenizer.encode(" bell")[0]

# %% [markdown]
# ## A trace
#
# One forward pass, with everything in it. Values have the names that they have in llama.py, after the
# path of their module:

# %%
looked = trace(model, ids)
for value in looked.names():
    if value.name.startswith("blocks.0."):
        print(f"{value.name:38} {value.shape}")

# %% [markdown]
# Attention weights of block 0 are `blocks.0.attention.p`. llama.py leaves products and attention to fast
# functions, which show nothing of what they do. Here they are replaced by the same equations, written
# out, so the scores are the same but for rounding:

# %%
p = looked.logits[-1].softmax(-1)
print("last token says", repr(tokenizer.decode([p.argmax().item()])), f"{p[bell]:.0%}")
assert p.argmax() == bell
with torch.no_grad():
    assert torch.allclose(
        looked.logits, llama(torch.tensor([ids]), model.weights, model.config)[0], atol=1e-3
    )

# %% [markdown]
# ## Who wrote the answer
#
# The last vector of the stream is a sum: the embedding, and what every head and every feed-forward added
# (lesson 5). The last RMSNorm divides this sum by one number, which we keep fixed at what it was, and
# multiplies it by the gain. A score is a product with the result, so a score is a sum, too. `attribution`
# says how much each part added to the score of *bell*:

# %%
parts = looked.attribution(-1, bell)
print(f"the parts add up to {sum(parts.values()):.3f}; the score is {looked.logits[-1, bell]:.3f}")
for name, share in sorted(parts.items(), key=lambda pair: -pair[1])[:5]:
    print(f"{share:+7.3f}  {name}")
assert abs(sum(parts.values()) - looked.logits[-1, bell].item()) < 1e-2

# %% tags=["picture"]
# What every part of the model added to the score of "bell".
figure, ax = plt.subplots(figsize=(7.4, 3.6))
names = list(parts)
ax.bar(range(len(names)), [parts[name] for name in names])
ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
ax.axhline(0, color="#777777", lw=0.8)
ax.set(ylabel='added to the score of "bell"')

# %% [markdown]
# ## Which heads are they
#
# `head_scores` measures for every head how much it looks one token back, and how much at what followed
# an earlier copy of the token (induction). Where no token has an earlier copy there is nothing to
# measure, and the result is not a number (`nan`), which we count as 0. Several heads may do the same work,
# so we take all with more than two fifths of the largest score:

# %%
scores = head_scores(looked)
heads = model.config.heads
found = {}
for kind in ("previous", "induction"):
    each = getattr(scores, kind).nan_to_num()
    found[kind] = [divmod(at, heads) for at in range(each.numel()) if each.flatten()[at] > each.max() * 2 / 5]
    for layer, head in found[kind]:
        print(f"{kind:10} block {layer}, head {head}: {each[layer, head]:.0%}")

# %% [markdown]
# ## Change it
#
# A change is a function of a named value, and what it returns goes on through the model. `ablate` sets
# what a head adds to zero:


# %%
def chance(looked) -> float:
    """The probability of bell."""
    return looked.logits[-1].softmax(-1)[bell].item()


print(f"unchanged: bell {chance(looked):.0%}")
for kind, all_of_it in found.items():
    without = trace(model, ids, change=[ablate(layer, head=head) for layer, head in all_of_it])
    print(f"without the {kind} heads {all_of_it}: bell {chance(without):.0%}")
    assert chance(without) < chance(looked) / 2

# %% [markdown]
# And *patching* puts a value from one pass into another. We read the same sentence with a drum, take the
# stream after each block at one place, and put it into our pass. Where does the word at the place
# of *bell* decide?

# %%
drum = trace(model, [tokenizer.bos, *tokenizer.encode(text.replace("bell", "drum"))])
place, last = ids.index(bell), len(ids) - 1
moved = torch.zeros(model.config.layers, 2)
for layer in range(model.config.layers):
    for column, position in enumerate((place, last)):
        change = patch(f"blocks.{layer}", drum, position=position)
        moved[layer, column] = chance(trace(model, ids, change=change))
    at_bell, at_last = moved[layer].tolist()
    print(f"after block {layer}: patched at 'bell' {at_bell:.0%}, at the last token {at_last:.0%}")
assert moved[0, 0] < chance(looked) / 4 < chance(looked) / 2 < moved[0, 1]
assert moved[-1, 1] < chance(looked) / 4 < chance(looked) / 2 < moved[-1, 0]

# %% [markdown]
# In early blocks the place of *bell* decides, at the end the last token does. In between the word was
# moved from one to the other, and we know by which heads.
#
# Outside of notebooks, `llucid look` shows all this as a page: the text, the code of llama.py with its
# values, the stream and the heads, each linked with the others.
#
# ## Exercises
#
# **1.** Write `without_feed_forward(layer)`: the probability of *bell* if the feed-forward of this layer adds
# nothing. Use `trace`, `ablate` (with `part`) and `chance`.

# %% tags=["exercise"]


def without_feed_forward(layer: int) -> float:
    """The probability of bell without the feed-forward of a layer."""
    raise NotImplementedError


# %% tags=["check"]
for layer in range(model.config.layers):
    change = {f"blocks.{layer}.feed_forward": torch.zeros_like}
    assert abs(without_feed_forward(layer) - chance(trace(model, ids, change=change))) < 1e-6
print("correct:", [f"{without_feed_forward(layer):.0%}" for layer in range(model.config.layers)])


# %% tags=["answer"]
def without_feed_forward(layer: int) -> float:
    """The probability of bell without the feed-forward of a layer."""
    return chance(trace(model, ids, change=ablate(layer, part="feed_forward")))


# %% [markdown]
# **2.** An attention map is a value like any other. Write `uniform(p)`: a function for
# `change={"blocks.….attention.p": uniform}` after which every head of a block looks equally at all tokens
# up to its own. We take the block of the induction heads. The last axis of `p` is keys, the one before is
# queries; what the mask hides stays 0.

# %% tags=["exercise"]


def uniform(p: torch.Tensor) -> torch.Tensor:
    """Equal shares for all visible keys."""
    raise NotImplementedError


# %% tags=["check"]
block = found["induction"][0][0]
real = looked[f"blocks.{block}.attention.p"]
even = uniform(real)
assert even.shape == real.shape
assert torch.allclose(even.sum(-1), torch.ones(even.shape[:-1]))
assert even[(*[0] * (even.ndim - 2), 1)][:3].tolist() == [0.5, 0.5, 0.0]
changed = trace(model, ids, change={f"blocks.{block}.attention.p": uniform})
print(f"correct: bell {chance(changed):.0%} when block {block} cannot choose where to look")


# %% tags=["answer"]
def uniform(p: torch.Tensor) -> torch.Tensor:
    """Equal shares for all visible keys."""
    visible = torch.ones(p.shape[-2:]).tril()
    return (visible / visible.sum(-1, keepdim=True)).expand_as(p)
