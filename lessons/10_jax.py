# %% [markdown]
# # The same in JAX
#
# llucid spells the Llama a second time, in JAX, in another style: each function takes one example of
# the smallest shape it can, and `vmap` makes many of it. `grad` turns a loss into its derivative.
# We check that both spellings agree, and let derivatives show which word matters for *bell*.

# %% tags=["setup"]
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from jax import vmap

import llucid
from llucid import llama_jax
from llucid.chat import STORYTELLER
from llucid.llama import llama
from llucid.weights import leaves, tree_map

model = llucid.load(STORYTELLER, dtype="float32", device="cpu")
config, tokenizer = model.config, model.tokenizer
weights = llama_jax.from_torch(model.weights)  # the same named tuples, holding JAX's arrays
text = "The fox rang the bell. The fox rang the"

# %% [markdown]
# ## One vector, then many
#
# In JAX, RMSNorm is written for one vector. No axis is counted, none is −1:
#
# ```python
# def rms_norm(x, gain, eps):
#     return x / jnp.sqrt(jnp.mean(x**2) + eps) * gain
# ```
#
# `vmap` gives a function an axis in front. Its second argument says which inputs have that axis
# (0) and which are the same for all (None). Apply it twice and there are two axes:

# %%
x = jnp.arange(24.0).reshape(2, 3, 4)  # batch seq dim
gain = jnp.ones(4)
of_vector = llama_jax.rms_norm
of_sequence = vmap(of_vector, (0, None, None))
of_batch = vmap(of_sequence, (0, None, None))
print("vector  ", of_vector(x[0, 0], gain, 1e-5).shape)
print("sequence", of_sequence(x[0], gain, 1e-5).shape)
print("batch   ", of_batch(x, gain, 1e-5).shape)

# %% [markdown]
# It is no loop: JAX traces the function once, and each operation becomes one on a larger array.
#
# ## Both spellings agree
#
# `jit` compiles a function as a whole, when it is called for the first time:

# %%
ids = jnp.array([tokenizer.bos, *tokenizer.encode(text)])
compiled = jax.jit(llama_jax.llama, static_argnames="config")
logits = compiled(ids, weights, config)
with torch.no_grad():
    reference = llama(torch.tensor([ids.tolist()]), model.weights, config)[0]
difference = np.abs(np.asarray(logits) - reference.numpy()).max()
print("JAX", logits.shape, "| PyTorch", tuple(reference.shape))
print(f"largest difference {difference:.1e}, of scores up to {np.abs(logits).max():.1f}")
print("JAX says", repr(tokenizer.decode([int(logits[-1].argmax())])))
assert difference < 2e-3
assert tokenizer.decode([int(logits[-1].argmax())]) == " bell"

# %% [markdown]
# ## grad
#
# `jax.grad(f)` is the function that computes the gradient of `f` with respect to its first argument,
# whatever tree of arrays that is. So there is no `backward` and no `.grad`; functions go in and
# functions come out.


# %%
def loss(weights, ids):
    """The mean surprise of a text in nats per token."""
    return llama_jax.loss(ids[None, :-1], ids[None, 1:], weights, config)


value_and_gradient = jax.jit(jax.value_and_grad(loss))
value, gradient = value_and_gradient(weights, ids)
print(f"loss {value:.4f}; the gradient is a {type(gradient).__name__} of the same shapes")

theirs = tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), model.weights)
row = torch.tensor([ids.tolist()])
scores = llama(row[:, :-1], theirs, config)
torch.nn.functional.cross_entropy(scores[0], row[0, 1:]).backward()
for ours, other in zip(leaves(gradient), leaves(theirs), strict=True):
    assert np.allclose(ours, other.grad.numpy(), atol=1e-3)
print("all", len(leaves(gradient)), "arrays of the gradient agree with PyTorch's")

# %% [markdown]
# (The loss is that large because our text is unlike all that the model has read: see "Worse than
# guessing" in lesson 5.)
#
# Going down the gradient a little must lower the loss by about the rate times the squared length of
# the gradient. That is Taylor's first term, and a good check of any gradient:

# %%
squared = sum(jnp.sum(leaf**2) for leaf in leaves(gradient))
for rate in (1e-4, 1e-5):
    lower = tree_map(lambda leaf, slope, rate=rate: leaf - rate * slope, weights, gradient)
    fall = value - value_and_gradient(lower, ids)[0]
    print(f"rate {rate:g}: the loss falls by {fall:.5f}, Taylor says {rate * squared:.5f}")
assert abs(fall / (rate * squared) - 1) < 0.2

# %% [markdown]
# ## Which word matters
#
# Anything can be differentiated with respect to anything. Take the surprise at each token, and its
# derivative with respect to the embedding vector of each token before it: how strongly would a small
# change *there* be felt *here*? `grad` gives one row of the picture, `vmap` all of them.

# %%
ids = jnp.array([tokenizer.bos, *tokenizer.encode(text + " bell")])


def surprise_at(at, x, ids):
    """The surprise of the token after position `at`, for embedded tokens x."""
    positions, theta = jnp.arange(len(x)), llama_jax.rope_frequencies(config, x.dtype)
    for of_block in weights.blocks:
        x = llama_jax.block(x, of_block, config, positions, theta)
    last = llama_jax.rms_norm(x[at], weights.norm, config.norm_eps)
    return llama_jax.surprise(llama_jax.unembed(last, weights), ids[at + 1])


x = weights.embedding[ids[:-1]]
at_all = jax.jit(vmap(jax.value_and_grad(surprise_at, argnums=1), (0, None, None)))
surprises, slopes = at_all(jnp.arange(len(x)), x, ids)
influence = jnp.linalg.norm(slopes, axis=-1)
print("slopes", slopes.shape, "-> influence", influence.shape, " predicted token, changed token")
assert jnp.all(jnp.triu(influence, 1) == 0)  # causality: no token feels a later one

# %% tags=["picture"]
# Which token each prediction depends on, and how surprising each token was.
pieces = ["<begin>", *(tokenizer.decode([token]).strip() for token in ids[1:].tolist())]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6), width_ratios=(3, 1), sharey=True)
left.imshow(jnp.sqrt(influence / influence.max(1, keepdims=True)), cmap="Purples", aspect="auto")
left.set_xticks(range(len(x)), pieces[:-1], rotation=90, fontsize=8)
left.set_yticks(range(len(x)), pieces[1:], fontsize=8)
left.set(xlabel="token that would change", ylabel="token that is predicted")
right.barh(range(len(x)), surprises, color="#8a5aa3")
right.set(xlabel="surprise in nats")
right.tick_params(left=False)

# %% [markdown]
# The last row is about *bell*. Besides the words just before, it depends on the first sentence:

# %%
first_sentence = influence[-1, 1:7].sum() / influence[-1].sum()
print(f"{first_sentence:.0%} of the influence on 'bell' comes from the first sentence")
assert first_sentence > 0.15

# %% [markdown]
# ## jit
#
# What does compiling bring? The first call with a new shape traces and compiles, and pays for it:

# %%
for name in ("first call", "second call"):
    started = time.perf_counter()
    compiled(ids, weights, config).block_until_ready()
    print(f"{name:20} {1000 * (time.perf_counter() - started):8.1f} ms")

# %% [markdown]
# ## Exercises
#
# **1.** Make the matrix product out of the dot product: write `product(a, b)` for `a` of shape
# `[n, k]` and `b` of shape `[k, m]`, with `jnp.dot` of two vectors and `vmap` alone.

# %% tags=["exercise"]


def product(a, b):
    """Row by row of a, column by column of b."""
    raise NotImplementedError


# %% tags=["check"]
a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
assert product(a, b).shape == (2, 4)
assert jnp.allclose(product(a, b), jnp.array([[20.0, 23, 26, 29], [56, 68, 80, 92]]))
print("correct")


# %% tags=["answer"]
def product(a, b):
    """Row by row of a, column by column of b."""
    by_column = vmap(jnp.dot, (None, 1))
    return vmap(by_column, (0, None))(a, b)


# %% [markdown]
# **2.** The gradient of the surprise with respect to the scores is the probabilities, minus one at
# the token that came (lesson 7). Write `slope(scores, target)` without `grad`.

# %% tags=["exercise"]


def slope(scores, target):
    """softmax(scores), less one at the target."""
    raise NotImplementedError


# %% tags=["check"]
by_jax = jax.grad(llama_jax.surprise)(logits[3], ids[4])
found = slope(logits[3], ids[4])
assert found.shape == by_jax.shape
assert jnp.allclose(found, by_jax, atol=1e-6)
print("correct: their sum is 0; what one token gains, the others lose")


# %% tags=["answer"]
def slope(scores, target):
    """softmax(scores), less one at the target."""
    return jax.nn.softmax(scores).at[target].add(-1.0)
