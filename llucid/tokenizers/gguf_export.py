"""Our tokenizers in the words of GGUF, where llama.cpp then gives the same ids."""

import json
from collections.abc import Sequence
from typing import Any

from llucid.errors import LlucidError
from llucid.tokenizers import Tokenizer
from llucid.tokenizers.characters import Characters
from llucid.tokenizers.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NO_END,
    NORMAL,
    PIECE_TYPE,
    RULES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_JSON,
    read_vocabulary,
    shown,
)
from llucid.tokenizers.llama2c import WORST_SCORE, Llama2cTokenizer
from llucid.tokenizers.llama2c_export import rows_of
from llucid.tokenizers.protobuf import fields
from llucid.tokenizers.sentencepiece_model import (
    BPE,
    CHARACTER_MAP,
    DUMMY_PREFIX,
    ESCAPE_SPACES,
    PIECES,
    REMOVE_SPACES,
    SentencePiece,
    trained_as,
)
from llucid.tokenizers.tiktoken_ranks import TiktokenRanks
from llucid.tokenizers.tokenizer_json import JsonTokenizer, name_of

PROBE = "  Once upon\n\n a time,  it's naïve 漢字 🚀\x00<s> 12345 <|eot_id|>\t\r\nDON'T  "


def write_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys that make llama.cpp give the same ids, filled up to the model's `vocab_size` with unused tokens.

    A `tokenizer.json` of which it makes the same but for spaces before texts goes with them, whole, for those that can
    read it. Raises LlucidError, by name, for a tokenizer that llama.cpp has no words for. What is said is read again to
    see.
    """
    if tokenizer.vocab_size > vocab_size:
        raise LlucidError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocab_size}")
    match tokenizer:
        case Characters():
            return _filled(_characters_told(tokenizer), vocab_size)
        case SentencePiece():
            told = _sentencepiece_told(tokenizer)
        case Llama2cTokenizer():
            told = _llama2c_told(tokenizer, tokenizer)
        case JsonTokenizer() | TiktokenRanks():
            content = json.loads(tokenizer.json())
            falls_back = content["model"].get("byte_fallback")
            told = _llama2c_told(rows_of(tokenizer), tokenizer) if falls_back else _json_told(content, tokenizer)
        case _:
            raise LlucidError(f"GGUF has no words for a tokenizer like this one ({type(tokenizer).__name__})")
    config = tokenizer.config if isinstance(tokenizer, JsonTokenizer | SentencePiece) else {}
    told = _filled(told | _ends_told(tokenizer, told["tokenizer.ggml.tokens"], config), vocab_size)
    if isinstance(template := config.get("chat_template"), str):
        told["tokenizer.chat_template"] = template
    found = read_vocabulary(told)
    _check_ends(found, tokenizer)
    return told | ({} if _same_ids(found, tokenizer) else {WHOLE_JSON: tokenizer.json()})


def _filled(told: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """As many tokens as the model has, as llama.cpp demands. 0xFF begins the text of the rwkv kind's: none matches."""
    tokens, spell = told["tokenizer.ggml.tokens"], "[PAD%d]"
    if told["tokenizer.ggml.model"] == "rwkv":
        spell = "\\xff%d"
    more = range(len(tokens), vocab_size)
    told = told | {"tokenizer.ggml.tokens": [*tokens, *(spell % number for number in more)]}
    for key, value in (("token_type", UNUSED), ("scores", -10000.0)):
        if f"tokenizer.ggml.{key}" in told:
            told[f"tokenizer.ggml.{key}"] = [*told[f"tokenizer.ggml.{key}"], *[value] * len(more)]
    return told


def _characters_told(tokenizer: Characters) -> dict[str, Any]:
    if not all(character.isascii() for character in tokenizer.characters):
        # Its search for a longest piece would never end at a character of which it knows only the first byte.
        raise LlucidError("GGUF has no words for a vocabulary of single characters that are not all ASCII")
    texts = [character.replace("\\", "\\\\") for character in tokenizer.characters]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [NORMAL] * len(texts),
        "tokenizer.ggml.add_bos_token": False,
    }


def _sentencepiece_told(tokenizer: SentencePiece) -> dict[str, Any]:
    """Of the message that the library opened. Raises LlucidError for a model that is no Llama's."""
    normal = tokenizer.normalizer
    alters = normal[CHARACTER_MAP] or normal[REMOVE_SPACES] or not normal[ESCAPE_SPACES]
    if alters or trained_as(tokenizer.model) != BPE:
        raise LlucidError("GGUF has no words for a SentencePiece model that alters text or does not merge pairs (BPE)")
    # Nearly all pieces are normal and have no field for it, nor its tag.
    types = [
        int(dict(fields(part)).get(PIECE_TYPE, NORMAL)) if PIECE_TYPE << 3 in part else NORMAL
        for number, part in fields(tokenizer.model)
        if number == PIECES and isinstance(part, bytes)
    ]
    return _pieces_told(tokenizer.pieces, tokenizer.scores, types, bool(normal[DUMMY_PREFIX]))


def _llama2c_told(made: Llama2cTokenizer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of llama2.c's rows; `tokenizer` is what they were made of."""
    if len(made.byte_ids) != 256:
        raise LlucidError("GGUF has no words for a tokenizer without a piece for each byte")
    names = {token: name for name, token in (made.special | tokenizer.special).items()}
    names |= {token: f"<0x{byte:02X}>" for token, byte in made.byte_of.items()}
    types = [CONTROL if token in names else NORMAL for token in range(made.vocab_size)]
    for token in made.byte_of:
        types[token] = BYTE
    types[made.special["<unk>"]] = UNKNOWN
    prefix = True
    if isinstance(tokenizer, JsonTokenizer):
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        types = [USER_DEFINED if n in added and kind == NORMAL else kind for n, kind in enumerate(types)]
        prefix = tokenizer.tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(("▁", " "))
    for token, piece in enumerate(made.pieces):
        text = piece.decode(errors="replace")
        if types[token] == NORMAL and made.scores[token] <= WORST_SCORE and len(text) > 1:
            halves = ((text[:cut].encode(), text[cut:].encode()) for cut in range(1, len(text)))
            if any(left in made.ids and right in made.ids for left, right in halves):
                raise LlucidError(f"GGUF cannot say that the piece {text!r} is never merged")
    try:
        texts = [names.get(token) or piece.decode().replace(" ", "▁") for token, piece in enumerate(made.pieces)]
    except UnicodeDecodeError as error:
        raise LlucidError(f"GGUF has no words for a piece that is no UTF-8: {error.object!r}") from error
    return _pieces_told(texts, made.scores, types, prefix)


def _pieces_told(texts: list[str], scores: Sequence[float], types: list[int], prefix: bool) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(score) for score in scores],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": types.index(UNKNOWN),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _json_told(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a `tokenizer.json` of byte pairs. Raises LlucidError for one that is of something else."""
    model = content["model"]
    cut = content.get("pre_tokenizer") or {}
    steps = [step | {"trim_offsets": True} for step in cut.get("pretokenizers", [cut])]
    rules = [
        name
        for name, rule in RULES.items()
        if steps == [step | {"trim_offsets": True} for step in rule.steps]
        and rule.whole_words == bool(model.get("ignore_merges"))
    ]
    odd = [key for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or content.get("normalizer") or odd or not rules:
        raise LlucidError(
            f"GGUF has no words for this tokenizer.json: its model is {shown(model.get('type'))}, it normalises by "
            f"{shown(content.get('normalizer'))}, cuts by {shown(cut)}, and has {', '.join(odd) or 'nothing else'}; "
            f"what GGUF knows is BPE with the cuts of {', '.join(RULES)}"
        )
    added = {told["id"]: told for told in content["added_tokens"]}
    if any(told["lstrip"] or told["rstrip"] or told["single_word"] for told in added.values() if not told["special"]):
        raise LlucidError("GGUF has no words for an added token that takes the spaces around it")
    texts = {token: text for text, token in model["vocab"].items()} | {n: told["content"] for n, told in added.items()}
    types = {token: CONTROL if told["special"] else USER_DEFINED for token, told in added.items()}
    every = range(tokenizer.vocab_size)
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules[0],
        "tokenizer.ggml.tokens": [texts.get(token, f"[PAD{token}]") for token in every],
        "tokenizer.ggml.token_type": [types.get(token, NORMAL if token in texts else UNUSED) for token in every],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
    }


def _ends_told(tokenizer: Tokenizer, texts: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """BOS, EOS and up to two more ids that end a text; where there is no EOS, the byte that no text has."""
    told: dict[str, Any] = {"tokenizer.ggml.add_bos_token": tokenizer.bos is not None}
    begin, name = tokenizer.bos, name_of("bos_token", config)
    if begin is None and name in texts:  # of no text, but templates may write it
        begin = texts.index(name)
    end = tokenizer.eos
    if end is None:
        end = next((token for token, text in enumerate(texts) if text in NO_END), None)
    if end is None:
        raise LlucidError("GGUF has no words for a tokenizer without EOS, nor a piece for the byte 0xFF")
    more = sorted(tokenizer.stop_ids - {end}, key=lambda token: (texts[token] == "<|eom_id|>", token))
    roles = {"bos": begin, "eos": end, **dict(zip(("eot", "eom"), more, strict=False))}
    return told | {f"tokenizer.ggml.{role}_token_id": token for role, token in roles.items() if token is not None}


def _check_ends(found: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises LlucidError if what is read again differs in an id that matters."""
    if (found.bos, found.eos) != (tokenizer.bos, tokenizer.eos) or not found.stop_ids >= tokenizer.stop_ids:
        raise LlucidError(
            f"GGUF has no words for this tokenizer's BOS {tokenizer.bos}, EOS {tokenizer.eos} and ends "
            f"{sorted(tokenizer.stop_ids)}: read again they are {found.bos}, {found.eos} and {sorted(found.stop_ids)}"
        )


def _same_ids(found: Tokenizer, tokenizer: Tokenizer) -> bool:
    """Whether what is read again gives the same ids; if not, they are those of texts with more spaces before them.

    For llama.cpp puts a space before every text, and after every token that it finds in one, where Metaspace puts none
    before a space, and "first" none within. Raises LlucidError if the ids or what is decoded differ in more."""
    added = tokenizer.tokenizer.get_added_tokens_decoder() if isinstance(tokenizer, JsonTokenizer) else {}
    some = set(range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 4096)) - added.keys()
    whole = [PROBE, " ".join(tokenizer.decode([token]) for token in sorted(some))]
    marks = [token.content for token in added.values() if not token.special]
    pairs = [(text.lstrip(" "),) * 2 for text in whole] + [(text, " " + text) for text in whole]
    pairs += [(f"a{mark}b {mark}  c", f"a{mark} b {mark}   c") for mark in marks]
    same = True
    for text, spaced in pairs:
        ids, theirs = tokenizer.encode(text), found.encode(text)
        same &= theirs == ids
        if theirs not in (ids, tokenizer.encode(spaced)) or found.decode(ids) != tokenizer.decode(ids):
            raise LlucidError(
                f"GGUF has no words for this tokenizer: of {text[:12]!r}… llama.cpp's rules make other ids than its own"
            )
    return same
