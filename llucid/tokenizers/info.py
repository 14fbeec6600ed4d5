"""A tokenizer's kind and size, without building it: building Llama 3's takes seconds."""

from pathlib import Path
from typing import NamedTuple

from llucid.files import read_json
from llucid.tokenizers.loading import is_json, load_tokenizer, tokenizer_file
from llucid.tokenizers.tokenizer import Tokenizer


class TokenizerInfo(NamedTuple):
    """The kind of a tokenizer, its number of ids, and the ids that begin and end a text."""

    kind: str
    vocab_size: int
    bos: int | None
    eos: int | None


def read_info(path: Path) -> TokenizerInfo:
    """Describes the tokenizer saved at `path`, a file or a folder. Raises LlucidError as `load_tokenizer` does."""
    from llucid.tokenizers.tiktoken_ranks import SPECIALS, is_tiktoken, named_in, special_ids

    file = tokenizer_file(path)
    with open(file, "rb") as opened:
        head = opened.read(1024)
        if is_tiktoken(head):
            opened.seek(0)
            ranks = sum(1 for line in opened.read().splitlines() if line.strip())
            _, bos, eos = special_ids(ranks, "3.1", *named_in(file.parent))
            return TokenizerInfo("TiktokenRanks", ranks + SPECIALS, bos, eos)
    if is_json(head) and (info := _of_json(file)):
        return info
    return info_of(load_tokenizer(file))


def info_of(tokenizer: Tokenizer) -> TokenizerInfo:
    """Describes a tokenizer in memory."""
    return TokenizerInfo(type(tokenizer).__name__, tokenizer.vocab_size, tokenizer.bos, tokenizer.eos)


def _of_json(file: Path) -> TokenizerInfo | None:
    """Describes a `tokenizer.json` and the files beside it; None if only its library can tell how it counts the ids."""
    from llucid.tokenizers.characters import is_characters
    from llucid.tokenizers.folder import added_in, folder_config, name_of
    from llucid.tokenizers.tokenizer_json import LARGEST_TOKENIZER, begins_with, vocabulary_of

    content, config = read_json(file, LARGEST_TOKENIZER), folder_config(file.parent)
    added = [(token["content"], number) for number, token in sorted(added_in(file.parent, config).items())]
    try:
        ids = vocabulary_of(content["model"])
        plain = len(ids) == len(content["model"]["vocab"]) and {*ids.values()} == {*range(len(ids))}
        for name, number in [*((token["content"], token["id"]) for token in content["added_tokens"]), *added]:
            plain = plain and bool(name) and ids.setdefault(name, len(ids)) == number
        bos, end = begins_with(content.get("post_processor")), name_of("eos_token", config)
        plain = plain and (bos or 0) < len(ids) and not is_characters(content)
    except (KeyError, TypeError, ValueError):
        return None
    return TokenizerInfo("JsonTokenizer", len(ids), bos, None if end is None else ids.get(end)) if plain else None
