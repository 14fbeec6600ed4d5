"""Tokenizers as GGUF keys, with which llama.cpp gives the same ids."""

import json
from collections.abc import Sequence
from typing import Any

from llucid.errors import LlucidError, shown
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.comparison import PROBES, json_difference
from llucid.tokenizers.folder import name_of
from llucid.tokenizers.gguf_vocabulary import (
    BYTE,
    CONTROL,
    DIGITS,
    NO_END,
    NORMAL,
    RULES,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_JSON,
    read_vocabulary,
    splits,
)
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.llama2c_export import rows_of
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.sentencepiece_model import DUMMY_PREFIX, SentencePiece
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.tokenizers.tokenizer import Tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer


def write_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys with which llama.cpp gives the same ids, padded to the model's `vocab_size` with unused tokens.

    If llama.cpp's ids differ from those of a `tokenizer.json` only in spaces before texts, the whole file is added for
    programs that can read it. Raises LlucidError, by name, for a tokenizer that the keys cannot express: they are read
    again to check.
    """
    if tokenizer.vocab_size > vocab_size:
        raise LlucidError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocab_size}")
    match tokenizer:
        case Characters():
            return _filled(_characters_keys(tokenizer), vocab_size)
        case SentencePiece():
            keys = _sentencepiece_keys(tokenizer)
        case Llama2cTokenizer():
            keys = _llama2c_keys(tokenizer, tokenizer)
        case JsonTokenizer() | TiktokenRanks():
            content = json.loads(tokenizer.json())
            falls_back = content["model"].get("byte_fallback") and content["model"].get("type") == "BPE"
            keys = _llama2c_keys(rows_of(tokenizer), tokenizer) if falls_back else _json_keys(content, tokenizer)
        case _:
            raise LlucidError(f"GGUF cannot express this kind of tokenizer ({type(tokenizer).__name__})")
    config = tokenizer.config
    keys = _filled(keys | _ends_keys(tokenizer, keys["tokenizer.ggml.tokens"], config), vocab_size)
    keys |= _template_keys(config.get("chat_template"))
    found = read_vocabulary(keys)
    _check_ends(found, tokenizer)
    if _same_ids(found, tokenizer):
        return keys
    if isinstance(tokenizer, SentencePiece) and (reason := tokenizer.odd_symbol()):
        raise LlucidError(f"GGUF cannot express this SentencePiece model: {reason}")
    if difference := json_difference(tokenizer):
        reason = f"llama.cpp's rules give other ids, and {difference}"
        if isinstance(tokenizer, SentencePiece) and tokenizer.first_only:
            reason += (
                '; "legacy": true in tokenizer_config.json would put a space after special tokens, as llama.cpp does'
            )
        raise LlucidError(f"GGUF cannot express this SentencePiece model: {reason}")
    return keys | {WHOLE_JSON: tokenizer.json()}


def _template_keys(template: object) -> dict[str, Any]:
    """The keys of a chat template, or of several with names."""
    if isinstance(template, str):
        return {TEMPLATE: template}
    rows = [row for row in template if isinstance(row, dict) and "name" in row] if isinstance(template, list) else []
    texts = {str(row["name"]): row["template"] for row in rows if isinstance(row.get("template"), str)}
    keys = {TEMPLATE if name == "default" else f"{TEMPLATE}.{name}": text for name, text in texts.items()}
    names = [name for name in texts if name != "default"]
    return keys | ({f"{TEMPLATE}s": names} if names else {})


def _filled(keys: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The keys with as many tokens as the model has, which llama.cpp requires. Those of the rwkv kind begin with 0xFF,
    to match no text."""
    tokens, spell = keys["tokenizer.ggml.tokens"], "[PAD%d]"
    if keys["tokenizer.ggml.model"] == "rwkv":
        spell = "\\xff%d"
    more = range(len(tokens), vocab_size)
    keys = keys | {"tokenizer.ggml.tokens": [*tokens, *(spell % number for number in more)]}
    for key, value in (("token_type", UNUSED), ("scores", -10000.0)):
        if f"tokenizer.ggml.{key}" in keys:
            keys[f"tokenizer.ggml.{key}"] = [*keys[f"tokenizer.ggml.{key}"], *[value] * len(more)]
    return keys


def _characters_keys(tokenizer: Characters) -> dict[str, Any]:
    if not all(character.isascii() for character in tokenizer.characters):
        # llama.cpp's search for the longest piece never ends at a character of which it has only the first byte.
        raise LlucidError("GGUF cannot express a vocabulary of single characters that are not all ASCII")
    texts = [character.replace("\\", "\\\\") for character in tokenizer.characters]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [NORMAL] * len(texts),
        "tokenizer.ggml.add_bos_token": False,
    }


def _sentencepiece_keys(tokenizer: SentencePiece) -> dict[str, Any]:
    """The keys of a SentencePiece model. Raises LlucidError for one that GGUF cannot express.

    A symbol that is a single character is never merged, and one with a space never found: both are ordinary here."""
    if reason := tokenizer.obstacle():
        raise LlucidError(f"GGUF cannot express this SentencePiece model: {reason}")
    if tokenizer.types.count(BYTE) != 256:  # llama.cpp ends at a character that it can spell in no other way
        raise LlucidError("GGUF cannot express a SentencePiece model without a piece for each byte")
    types = tokenizer.types.copy()
    for piece, token in tokenizer.symbols.items():
        types[token] = USER_DEFINED if token in tokenizer.added or "▁" in piece else NORMAL
    for token in tokenizer.outside.ids if tokenizer.outside else ():
        types[token] = USER_DEFINED
    return _pieces_keys(tokenizer.pieces, tokenizer.scores, types, bool(tokenizer.normalizer[DUMMY_PREFIX]))


def _llama2c_keys(made: Llama2cTokenizer, tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of llama2.c's pieces and scores; `tokenizer` is the one that they were made from."""
    if len(made.byte_ids) != 256:
        raise LlucidError("GGUF cannot express a tokenizer without pieces for the 256 bytes behind its first three")
    names = {token: name for name, token in (made.special | tokenizer.special).items()}
    names |= {token: f"<0x{byte:02X}>" for token, byte in made.byte_of.items()}
    types = [CONTROL if token in names else NORMAL for token in range(made.vocab_size)]
    for token in made.byte_of:
        types[token] = BYTE
    types[made.special["<unk>"]] = UNKNOWN
    prefix = True
    if isinstance(tokenizer, JsonTokenizer):
        added = tokenizer.added
        types = [USER_DEFINED if n in added and kind == NORMAL else kind for n, kind in enumerate(types)]
        first = [tokenizer.tokenizer.id_to_token(token) for token in tokenizer.encode("a")[:1]]
        prefix = any(text is not None and text.startswith(("▁", " ")) for text in first)
    for left, right in merges_of(dict.fromkeys(made.ids, 0)):
        token = made.ids[left + right]
        if types[token] == NORMAL and made.scores[token] <= WORST_SCORE:
            text = made.pieces[token].decode(errors="replace")
            raise LlucidError(f"GGUF cannot express that the piece {text!r} is never merged")
    try:
        texts = [names.get(token) or piece.decode().replace(" ", "▁") for token, piece in enumerate(made.pieces)]
    except UnicodeDecodeError as error:
        raise LlucidError(f"GGUF cannot express a piece that is not UTF-8: {error.object!r}") from error
    return _pieces_keys(texts, made.scores, types, prefix)


def _pieces_keys(texts: list[str], scores: Sequence[float], types: list[Any], prefix: bool) -> dict[str, Any]:
    """The keys; a type from a damaged model may be no number."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(score) for score in scores],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": types.index(UNKNOWN),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _json_keys(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of a `tokenizer.json` of byte pairs. Raises LlucidError for another kind."""
    model = content["model"]
    cut = content.get("pre_tokenizer") or {}
    steps = _comparable(cut.get("pretokenizers", [cut]))
    rules = [
        name
        for name, rule in RULES.items()
        if steps == _comparable(rule.steps) and rule.whole_words == bool(model.get("ignore_merges"))
    ]
    normal = content.get("normalizer") or {}
    normal = None if normal.get("normalizers") == [] else normal or None
    odd = [key for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or normal or odd or not rules:
        raise LlucidError(
            f"GGUF cannot express this tokenizer.json: its model is {shown(model.get('type'))}, its normalizer "
            f"{shown(normal)}, its pre_tokenizer {shown(cut)}, and it has "
            f"{', '.join(odd) or 'nothing else'}; GGUF has BPE with the words of {', '.join(RULES)}"
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    ordinary = [token for token in added.values() if not token["special"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in ordinary):
        raise LlucidError("GGUF cannot express an added token with lstrip, rstrip or single_word")
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    types = {number: CONTROL if token["special"] else USER_DEFINED for number, token in added.items()}
    every = range(tokenizer.vocab_size)
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules[0],
        "tokenizer.ggml.tokens": [texts.get(token, f"[PAD{token}]") for token in every],
        "tokenizer.ggml.token_type": [types.get(token, NORMAL if token in texts else UNUSED) for token in every],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
    }


def _comparable(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in one spelling: line breaks in a pattern, and a split at each digit, have two."""
    digit, _ = splits(r"\p{N}")
    found: list[dict[str, Any]] = []
    for step in steps:
        if isinstance(pattern := dict(step.get("pattern") or {}).get("Regex"), str):
            step = step | {"pattern": {"Regex": pattern.replace("\r", r"\r").replace("\n", r"\n")}}
        found.append((DIGITS if step == digit else step) | {"trim_offsets": True})
    return found


def _ends_keys(tokenizer: Tokenizer, texts: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """The keys of BOS, EOS and up to two more ids that end a text; without EOS, the byte that no text has."""
    keys: dict[str, Any] = {"tokenizer.ggml.add_bos_token": tokenizer.bos is not None}
    begin, name = tokenizer.bos, name_of("bos_token", config)
    if begin is None and name in texts:  # no text begins with it, but a template may write it
        begin = texts.index(name)
    end = tokenizer.eos
    if end is None:
        end = next((token for token, text in enumerate(texts) if text in NO_END), None)
    if end is None:
        raise LlucidError("GGUF cannot express a tokenizer without EOS and without a piece for the byte 0xFF")
    more = sorted(tokenizer.stop_ids - {end}, key=lambda token: (texts[token] == "<|eom_id|>", token))
    roles = {"bos": begin, "eos": end, **dict(zip(("eot", "eom"), more, strict=False))}
    return keys | {f"tokenizer.ggml.{role}_token_id": token for role, token in roles.items() if token is not None}


def _check_ends(found: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises LlucidError if BOS, EOS or a stop id is lost."""
    if (found.bos, found.eos) != (tokenizer.bos, tokenizer.eos) or not found.stop_ids >= tokenizer.stop_ids:
        raise LlucidError(
            f"GGUF cannot express this tokenizer's BOS {tokenizer.bos}, EOS {tokenizer.eos} and ends "
            f"{sorted(tokenizer.stop_ids)}: read again they are {found.bos}, {found.eos} and {sorted(found.stop_ids)}"
        )


def _same_ids(found: Tokenizer, tokenizer: Tokenizer) -> bool:
    """Whether the keys give the same ids; False if they give those of texts with more spaces.

    llama.cpp puts a space before every text, and after every token that it finds in one; Metaspace puts none before a
    space, and with "first" none within a text. Raises LlucidError for any other difference."""
    added = tokenizer.added if isinstance(tokenizer, JsonTokenizer | SentencePiece) else {}
    some = set(range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 4096)) - added.keys()
    whole = [*PROBES, " ".join(tokenizer.decode([token]) for token in sorted(some))]
    marks = [token.content for token in added.values() if not token.special]
    pairs = [(text.lstrip(" "),) * 2 for text in whole] + [(text, " " + text) for text in whole]
    pairs += [(f"a{mark}b {mark}  c", f"a{mark} b {mark}   c") for mark in marks]
    same = True
    for text, spaced in pairs:
        ids, theirs = tokenizer.encode(text), found.encode(text)
        same &= theirs == ids
        if theirs not in (ids, tokenizer.encode(spaced)) or found.decode(ids) != tokenizer.decode(ids):
            raise LlucidError(
                f"GGUF cannot express this tokenizer: for {text[:12]!r}… llama.cpp's rules give other ids"
            )
    return same
