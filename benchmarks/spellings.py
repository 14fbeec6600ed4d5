"""Functions, classes and JAX compared: the same weights, tokens and work, alternating."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRESET, ROWS, SEQ = "micro", 4, 256
"""A small model with its usual batch, where the cost per call matters most."""


def medians(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, alternating, after a first round for compilation."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            work()  # not timed: warms up caches and threads after the previous work
            begun = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def spellings(options: argparse.Namespace, folder: Path) -> None:
    """Times forward, forward and backward, and one token with a cache; eager and compiled."""
    import jax
    import jax.numpy as jnp
    import torch
    import torch.nn.functional as F

    from llucid import llama_jax
    from llucid.cache import empty_cache
    from llucid.llama import llama
    from llucid.llama_module import Llama
    from llucid.presets import PRESETS
    from llucid.weights import initialise, leaves

    config = PRESETS[PRESET].config
    module = Llama.from_weights(initialise(config), config)
    weights = module.weights()
    tokens = torch.randint(config.vocab_size, (ROWS, SEQ + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    with torch.no_grad():
        _, cache = llama(inputs[:1, :-1], weights, config, empty_cache(config, 1, SEQ, weights))
    last = inputs[:1, -1:]

    def functions(tokens: torch.Tensor, cache: Any = None) -> Any:
        return llama(tokens, weights, config, cache)

    def trained(spelling: Callable[..., Any]) -> None:
        loss = F.cross_entropy(spelling(inputs).flatten(0, 1), targets.flatten())
        torch.autograd.grad(loss, leaves(weights))

    theirs = llama_jax.from_torch(weights)
    forward = jax.jit(jax.vmap(lambda row: llama_jax.llama(row, theirs, config)))
    gradients = jax.jit(jax.value_and_grad(lambda theirs, x, y: llama_jax.loss(x, y, theirs, config)))
    again = jax.jit(lambda row: llama_jax.llama(row, theirs, config)[-1])
    x, y = jnp.array(inputs.numpy()), jnp.array(targets.numpy())
    torches = {
        "functions": functions,
        "classes": module,
        "functions, compiled": torch.compile(functions, dynamic=False),
        "classes, compiled": torch.compile(module, dynamic=False),
    }
    works = {
        "forward": {name: lambda each=each: each(inputs) for name, each in torches.items()}
        | {"JAX, jit": lambda: forward(x).block_until_ready()},
        "forward and backward": {name: lambda each=each: trained(each) for name, each in torches.items()}
        | {"JAX, jit": lambda: jax.block_until_ready(gradients(theirs, x, y))},
        f"a token at position {SEQ - 1}": {name: lambda each=each: each(last, cache) for name, each in torches.items()}
        | {"JAX, jit": lambda: again(x[0]).block_until_ready()},
    }
    found: dict[str, dict[str, float]] = {}
    for work, ways in works.items():
        with torch.set_grad_enabled("backward" in work):
            found[work] = medians(ways, 6 * options.rounds)

    print(f"Milliseconds; {PRESET}, float32, {ROWS} × {SEQ} tokens, {torch.get_num_threads()} threads.\n")
    print(f"| | {' | '.join(found)} |\n|---{'|---' * len(found)}|")
    for name in [*torches, "JAX, jit"]:
        print(f"| {name} | {' | '.join(f'{times[name]:.2f}' for times in found.values())} |")
    for way in ("", ", compiled"):
        cost = (100 * (times[f"classes{way}"] / times[f"functions{way}"] - 1) for times in found.values())
        print(f"| what classes cost{way} | {' | '.join(f'{share:+.0f} %' for share in cost)} |")
