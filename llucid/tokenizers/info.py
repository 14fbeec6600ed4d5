"""What a tokenizer is, told without building it: building Llama 3's takes seconds."""

from pathlib import Path
from typing import NamedTuple

from llucid.tokenizers import Tokenizer, load_tokenizer, tokenizer_file


class TokenizerInfo(NamedTuple):
    """Its kind, how many ids it has, and which of them begin and end a text."""

    kind: str
    vocab_size: int
    bos: int | None
    eos: int | None


def read_facts(path: Path) -> TokenizerInfo:
    """The facts of the tokenizer saved at `path`, a file or a folder. Raises LlucidError as `load_tokenizer` does."""
    from llucid.tokenizers.tiktoken_ranks import SPECIALS, is_tiktoken

    file = tokenizer_file(path)
    with open(file, "rb") as opened:
        head = opened.read(1024)
        if is_tiktoken(head):
            opened.seek(0)
            ranks = sum(1 for line in opened if line.strip())
            return TokenizerInfo("TiktokenRanks", ranks + SPECIALS, ranks, ranks + 1)
    if head.lstrip()[:1] == b"{" and (facts := _of_json(file)):
        return facts
    return facts_of(load_tokenizer(file))


def facts_of(tokenizer: Tokenizer) -> TokenizerInfo:
    """The facts of a tokenizer that is built."""
    return TokenizerInfo(type(tokenizer).__name__, tokenizer.vocab_size, tokenizer.bos, tokenizer.eos)


def _of_json(file: Path) -> TokenizerInfo | None:
    """What a `tokenizer.json` and the file beside it say; None if it is of a form that only its library knows."""
    from llucid.tokenizers.characters import is_characters
    from llucid.tokenizers.tokenizer_json import added_in, begins_with, folder_config, name_of, read_json

    told, named = read_json(file), folder_config(file.parent)
    try:
        ids = told["model"]["vocab"] | {added["content"]: added["id"] for added in told["added_tokens"]}
        ids |= {token.content: number for number, token in added_in(file.parent, named).items()}
        size, begin = max(ids.values()) + 1, begins_with(told.get("post_processor"))
        end = ids.get(name_of("eos_token", named))
        return None if is_characters(told) or (begin or 0) >= size else TokenizerInfo("JsonTokenizer", size, begin, end)
    except (KeyError, TypeError, ValueError):
        return None
