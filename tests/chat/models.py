"""Small chat models: one recites the alphabet, one has random weights."""

import string
from itertools import pairwise

import torch

from llucid.checkpoints import Model
from llucid.config import Config
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.weights import initialise, tree_map

LETTERS = string.ascii_lowercase


def letters() -> TiktokenRanks:
    """Llama 3's special tokens and one id per byte, so that every text has one encoding."""
    return TiktokenRanks([bytes([byte]) for byte in range(256)])


def reciter(context: int = 400, endless: bool = False, begins: str = "a") -> Model:
    """Its likeliest token depends only on the last one: `begins` after a header, then `a` to `z`, then `<|eot_id|>`,
    or `a` again if `endless`."""
    tokenizer = letters()
    end = ord("a") if endless else tokenizer.special["<|eot_id|>"]
    after = {ord("\n"): ord(begins), ord(" "): ord("a"), ord("z"): end}
    return successors(after | {ord(letter): ord(following) for letter, following in pairwise(LETTERS)}, context)


def successors(after: dict[int, int], context: int) -> Model:
    """Its likeliest token depends only on the last one."""
    tokenizer = letters()
    size = tokenizer.vocab_size
    config = Config(dim=size, layers=1, heads=1, kv_heads=1, head_dim=8, ffn_dim=8, vocab_size=size, context=context)
    weights = initialise(config)
    silent = tree_map(torch.zeros_like, weights.blocks)
    output = torch.zeros(size, size)
    for token, following in after.items():
        output[following, token] = 1
    return Model(config, weights._replace(embedding=torch.eye(size), blocks=silent, output=output), tokenizer)


def rambler(context: int = 400) -> Model:
    """Random weights, so large that every earlier token matters; the likeliest tokens are letters."""
    tokenizer = letters()
    config = Config(
        dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=56, vocab_size=tokenizer.vocab_size, context=context
    )
    weights = tree_map(lambda leaf: leaf if leaf.dim() == 1 else 8 * leaf, initialise(config))
    output = torch.zeros_like(weights.embedding)
    letter_ids = [ord(letter) for letter in LETTERS]
    output[letter_ids] = 3 * weights.embedding[letter_ids]
    return Model(config, weights._replace(output=output), tokenizer)
