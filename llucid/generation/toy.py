"""Shows step by step how a Llama predicts the next word, with a vocabulary of a few words."""

from collections.abc import Iterable

import torch
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from llucid.config import Config
from llucid.errors import PRINTABLE, LlucidError
from llucid.generation.predictions import Prediction, table
from llucid.llama import llama
from llucid.weights import initialise, parameter_count, tree_map

WORDS = ["a", "and", "brown", "cat", "dog", "fox", "jumps", "lazy", "over", "quick", "runs", "sleeps", "the", "under"]


def show_toy(text: str, top_k: int, console: Console) -> None:
    """Prints vocabulary, ids, logits, softmax and the `top_k` likeliest words after `text`, from an untrained model.

    Raises LlucidError if the text has no word, or `top_k` is below 1.
    """
    words = text.lower().split()
    if not words:
        raise LlucidError("toy= needs some words, for example: the brown fox")
    if top_k < 1:
        raise LlucidError(f"top_k={top_k}: must be at least 1")
    vocabulary = sorted({*WORDS, *words})
    ids = torch.tensor([[vocabulary.index(word) for word in words]])
    config = Config(
        dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn_dim=32, vocab_size=len(vocabulary), context=len(words)
    )
    # An untrained Llama's distribution is nearly uniform; larger weights make it less so.
    weights = tree_map(lambda leaf: leaf if leaf.dim() == 1 else 20 * leaf, initialise(config))
    with torch.inference_mode():
        logits = llama(ids, weights, config)[0, -1]
    probabilities = logits.softmax(-1)

    def say(title: str, explanation: str) -> None:
        console.print()
        console.print(Text(title, "bold"), Text(f" {explanation}"))

    def show(facts: Iterable[str]) -> None:
        console.print(Columns([Text(fact.translate(PRINTABLE)) for fact in facts], padding=(0, 2)))

    say("1 vocabulary", f"the {len(vocabulary)} words that this model knows, each with its id")
    show(f"{number} {word}" for number, word in enumerate(vocabulary))
    say("2 ids", "the text as the model sees it")
    show(f"{word} → {number}" for word, number in zip(words, ids[0].tolist(), strict=True))
    say(
        "3 logits",
        f"{parameter_count(config):,} random weights turn the ids into one score per word (llucid.llama.llama)",
    )
    show(f"{word} {score:+.2f}" for word, score in zip(vocabulary, logits.tolist(), strict=True))
    say("4 softmax", f"exp(score) / Σ exp(score): probabilities, which add up to {probabilities.sum():.2f}")
    show(f"{word} {p:.3f}" for word, p in zip(vocabulary, probabilities.tolist(), strict=True))
    say("5 top-k", f"the {min(top_k, len(vocabulary))} likeliest words after “{text}”")
    values, order = probabilities.topk(min(top_k, len(vocabulary)))
    best = zip(order.tolist(), values.tolist(), strict=True)
    console.print(table([Prediction(vocabulary[number], number, p) for number, p in best]))
    console.print("Its weights are random, so its guesses are too: training is what makes them good.")
