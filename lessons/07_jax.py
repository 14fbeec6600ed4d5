# %% [markdown]
# # The same in JAX
#
# The package spells the Llama a second time, in JAX, in another spirit: every function takes
# one example of the smallest shape it can, and `vmap` makes many of it. Then `grad` turns a
# loss into its derivative. Both are functions that make functions. We check that the two
# spellings agree and let derivatives show which token leans on which.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from jax import vmap

from llucid import llama, llama_jax
from llucid.corpora import open_corpus
from llucid.weights import leaves, tree_map
from trained import fables_model

model = fables_model()
config, tokenizer = model.config, model.tokenizer
weights = llama_jax.from_torch(model.weights)  # the same named tuples, holding JAX's arrays
print(type(weights).__name__, "of", type(weights.embedding).__name__, list(weights.embedding.shape))

# %% [markdown]
# ## One vector, then many
#
# RMSNorm knows one vector. No axis is counted, none is named −1:
#
# ```python
# def rms_norm(x, gain, eps):
#     rms = jnp.sqrt(jnp.mean(wide(x) ** 2) + eps)
#     return (wide(x) / rms).astype(x.dtype) * gain
# ```
#
# `vmap` gives it an axis in front. The second argument says which inputs have that axis (0) and
# which are the same for all (None). Apply it twice and there are two axes:

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
# It is not a loop: JAX traces the function once and every operation becomes one on a larger
# array. Attention is spelled so, too. `attend` is one query that looks at some keys; `vmap` over
# queries makes a head of it, over heads a layer:

# %%
key = jax.random.key(0)
q, k, v = jax.random.normal(key, (3, 5, 8))  # seq head_dim, three times
positions = jnp.arange(5)
one = llama_jax.attend(q[4], k, v, positions[4], positions)
head = vmap(llama_jax.attend, (0, None, None, 0, None))(q, k, v, positions, positions)
print("one query", one.shape, "-> a head", head.shape)
assert jnp.allclose(head[4], one, atol=1e-6)

# %% [markdown]
# ## The two spellings agree
#
# One text through JAX, the same through PyTorch. In 32 bits they differ by rounding; the
# package's tests compare them in 64 bits, to ten decimals, values and gradients.

# %%
tale = next(open_corpus(["fables"]).text("validation")).split("\n\n")[1]
ids = jnp.array(tokenizer.encode(tale)[:28])
logits = llama_jax.llama(ids, weights, config)
with torch.no_grad():
    reference = llama.llama(torch.tensor([ids.tolist()]), model.weights, config)[0]
print("JAX", logits.shape, "| PyTorch", tuple(reference.shape))
difference = np.abs(np.asarray(logits) - reference.numpy()).max()
print(f"largest difference {difference:.1e}, among logits up to {np.abs(logits).max():.1f}")
assert difference < 1e-3

# %% [markdown]
# ## grad
#
# `jax.grad(f)` is the function that computes $\nabla f$ with respect to its first argument,
# whatever tree of arrays that is. Here is the gradient of a text's loss with respect to all
# weights at once, beside that of PyTorch's `backward`. (`jit` compiles a function as a whole; more
# of it below.)


# %%
def loss(weights, ids):
    """The mean surprise in nats per token of a text."""
    return llama_jax.loss(ids[None, :-1], ids[None, 1:], weights, config)


value_and_gradient = jax.jit(jax.value_and_grad(loss))
value, gradient = value_and_gradient(weights, ids)
print(f"loss {value:.4f}; the gradient is {type(gradient).__name__} of the same shapes")

theirs = tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), model.weights)
row = torch.tensor([ids.tolist()])
scores = llama.llama(row[:, :-1], theirs, config)
torch.nn.functional.cross_entropy(scores[0], row[0, 1:]).backward()
for ours, other in zip(leaves(gradient), leaves(theirs), strict=True):
    assert np.allclose(ours, other.grad.numpy(), atol=1e-4)
print("all", len(leaves(gradient)), "arrays of the gradient agree with PyTorch's")

# %% [markdown]
# A gradient says which way is up; going down a little must make the loss smaller, by about
# the rate times the squared length of the gradient. That is Taylor's first term, and a good
# check of any gradient:

# %%
squared = sum(jnp.sum(leaf**2) for leaf in leaves(gradient))
for rate in (1e-3, 1e-4):
    lower = tree_map(lambda leaf, slope, rate=rate: leaf - rate * slope, weights, gradient)
    fall = value - value_and_gradient(lower, ids)[0]
    print(f"rate {rate:g}: the loss falls by {fall:.6f}, Taylor says {rate * squared:.6f}")

# %% [markdown]
# ## Which token leans on which
#
# Anything can be differentiated with respect to anything. Take the surprise at each token, and
# its derivative with respect to the embedding vector of each token before: how strongly would a
# small change *there* be felt *here*? `grad` gives one row of the picture, `vmap` all rows.


# %%
def surprise_at(at, x, ids):
    """The surprise of the token after position `at`, if the embedded tokens are x."""
    positions = jnp.arange(len(x))
    theta = llama_jax.rope_frequencies(config, x.dtype)
    for of_block in weights.blocks:
        x = llama_jax.block(x, of_block, config, positions, theta)
    last = llama_jax.rms_norm(x[at], weights.norm, config.norm_eps)
    return llama_jax.surprise(llama_jax.unembed(last, weights), ids[at + 1])


x = weights.embedding[ids[:-1]]
surprise_and_slope = jax.value_and_grad(surprise_at, argnums=1)
at_all = jax.jit(vmap(surprise_and_slope, (0, None, None)))
surprises, slopes = at_all(jnp.arange(len(x)), x, ids)
influence = jnp.linalg.norm(slopes, axis=-1)
print("slopes", slopes.shape, "-> influence", influence.shape, " surprised token, changed token")
assert jnp.all(jnp.triu(influence, 1) == 0)  # no token feels a later one: causality, by derivative
assert jnp.allclose(surprises.mean(), value, atol=1e-4)

# %% tags=["picture"]
pieces = [tokenizer.decode([token]).strip() or "␣" for token in ids.tolist()]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 4.6), width_ratios=(4, 1), sharey=True)
left.imshow(jnp.sqrt(influence / influence.max()), cmap="Purples", interpolation="none")
left.set_xticks(range(len(x)), pieces[:-1], rotation=90, fontsize=8)
left.set_yticks(range(len(x)), pieces[1:], fontsize=8)
left.set(xlabel="token that would change", ylabel="token that is predicted")
right.barh(range(len(x)), surprises, color="#8a5aa3")
right.set(xlabel="surprise in nats")
right.tick_params(left=False)

# %% [markdown]
# ## jit
#
# Traced once, a function can be compiled as a whole. The first call pays; shapes and the config
# are part of what is compiled.

# %%
compiled = jax.jit(llama_jax.llama, static_argnames="config")
calls = {"as written": llama_jax.llama, "first call compiled": compiled, "compiled": compiled}
for name, function in calls.items():
    began = time.perf_counter()
    function(ids, weights, config).block_until_ready()
    print(f"{name:20} {1000 * (time.perf_counter() - began):8.1f} ms")

# %% [markdown]
# ## Exercises
#
# **1.** Make the matrix product out of the dot product: write `product(a, b)` for `a` of shape
# `[n, k]` and `b` of shape `[k, m]` with `jnp.dot` of two vectors and `vmap` alone.


# %% tags=["answer"]
def product(a, b):
    """Row by row of a, column by column of b."""
    by_column = vmap(jnp.dot, (None, 1))
    return vmap(by_column, (0, None))(a, b)


# %% tags=["check"]
a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
assert product(a, b).shape == (2, 4)
assert jnp.allclose(product(a, b), a @ b)
print("holds")

# %% [markdown]
# **2.** The gradient of the surprise with respect to the scores is simple: the probabilities,
# minus one at the token that came. Write `slope(scores, target)` without `grad`.


# %% tags=["answer"]
def slope(scores, target):
    """softmax(scores), less one at the target."""
    return llama_jax.softmax(scores).at[target].add(-1.0)


# %% tags=["check"]
by_jax = jax.grad(llama_jax.surprise)(logits[3], ids[4])
assert jnp.allclose(slope(logits[3], ids[4]), by_jax, atol=1e-6)
assert abs(slope(logits[3], ids[4]).sum()) < 1e-5  # what one token gains, the others lose
print("holds")

# %% [markdown]
# **3.** Gradients of one text each, for a batch of texts, are awkward in many frameworks. Here
# they are `vmap` of `grad`. Write `lengths(texts)`: for each row of `texts`
# (`[rows, seq]`), the norm of the gradient of its `loss` (above) with respect to `weights.norm`.


# %% tags=["answer"]
def lengths(texts):
    """The norm of each text's own gradient with respect to the last gain."""
    gradients = jax.jit(vmap(jax.grad(loss), (None, 0)))(weights, texts)
    return jnp.linalg.norm(gradients.norm, axis=-1)


# %% tags=["check"]
texts = jnp.stack([ids, ids[::-1]])
measured = lengths(texts)
assert measured.shape == (2,)
for found, text in zip(measured, texts, strict=True):
    alone = jax.grad(loss)(weights, text).norm
    assert jnp.allclose(found, jnp.linalg.norm(alone), rtol=1e-3)
print("holds: the text has", f"{measured[0]:.3f}", "and, read backwards,", f"{measured[1]:.3f}")
