"""Learns a tokenizer from text: byte-pair encoding."""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llucid.errors import LlucidError
from llucid.tokenizers.steps import WORDS
from llucid.tokenizers.tokenizer_json import JsonTokenizer, beginning_with

LONGEST_WORD = 64
"""Characters: longer words are cut before merges are learned, which takes time quadratic in a word's length."""


def interruptible(work: Callable[[], None]) -> None:
    """Calls `work` in a thread, since it computes outside of Python for long: so signals are handled meanwhile."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # with a limit, since a signal may be delivered to another thread
    if errors:
        raise errors[0]


LARGEST_BPE = 2**20
"""Tokens."""


def train_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), config: dict[str, Any] | None = None
) -> JsonTokenizer:
    """Byte-pair encoding over bytes, so that every text has ids: the commonest pair becomes a token, again and again.

    Sennrich et al. 2016, §3.2, on bytes as Radford et al. 2019 (GPT-2), §2.2. The `special` tokens have the first ids;
    `config` is what `tokenizer_config.json` is to say; a BOS that it names begins every text. Raises LlucidError if
    `vocab_size` is not above 256, the number of bytes, and that of the special tokens, or above LARGEST_BPE.
    """
    if vocab_size <= 256 + len(special):
        raise LlucidError(
            f"bpe:{vocab_size}: a byte-level vocabulary needs more than its {256 + len(special)} bytes"
            f"{' and special tokens' if special else ''}, as in bpe:1024"
        )
    if vocab_size > LARGEST_BPE:  # the library reserves memory for all of them
        raise LlucidError(f"bpe:{vocab_size}: expected at most {LARGEST_BPE:,} tokens, as in bpe:1024")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(name, normalized=False, special=True) for name in special],
        show_progress=False,
    )
    steps = tokenizer.pre_tokenizer
    cut = pre_tokenizers.Split(Regex(rf"[\s\S]{{{LONGEST_WORD}}}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, cut, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    interruptible(lambda: tokenizer.train_from_iterator(texts, trainer))
    tokenizer.pre_tokenizer = steps
    content = json.loads(tokenizer.to_str())
    if bos := (config or {}).get("bos_token"):
        content["post_processor"] = beginning_with(bos, special.index(bos))
    return JsonTokenizer(content, config=config)
