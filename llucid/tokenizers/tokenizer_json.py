"""Tokenizers in a `tokenizer.json`, the format of the `tokenizers` library."""

import json
import os
import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from llucid.errors import LlucidError
from llucid.properties import cached_property
from llucid.tokenizers.byte_pieces import BYTE_OF_LETTER, BYTE_PIECE
from llucid.tokenizers.folder import (
    STRIPS,
    added_in,
    end_ids,
    folder_config,
    name_of,
    role_names,
    role_tokens,
    write_folder,
)
from llucid.tokenizers.steps import (
    KINDS,
    around_a_word,
    grows,
    may_panic,
    refuse_growth,
    refuse_longer,
    refuse_vanishing,
    steps_of,
    typed_steps,
    without_prefix,
)
from llucid.tokenizers.text import replace_surrogates

LARGEST_TOKENIZER = 2**27
"""Bytes of a `tokenizer.json`; published ones have up to 35 million."""
MOST_IDS = 2**18
"""Ids that even a small `tokenizer.json` may have: the library allocates memory for every id up to the largest."""


@contextmanager
def library_errors(what: str, quiet: bool = False) -> Generator[None]:
    """Turns what the library raises into LlucidError: bare Exceptions, and BaseExceptions for a panic of its Rust.

    `quiet` keeps a panic from printing a page on stderr.
    """
    try:
        with quiet_stderr() if quiet else nullcontext():
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, LlucidError):
        raise
    except BaseException as error:
        raise LlucidError(f"{what}: {error}") from error


STDERR = threading.RLock()
"""Of the thread that discards it; a fork waits for it, since the other threads are gone in the new process."""
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=STDERR.acquire, after_in_parent=STDERR.release, after_in_child=STDERR.release)


@contextmanager
def quiet_stderr() -> Generator[None]:
    """Discards what is written to the file descriptor of stderr, by other threads, too."""
    with STDERR:
        try:
            saved = os.dup(2)
        except OSError:  # closed
            yield
            return
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class JsonTokenizer:
    """A `tokenizer.json` and the files beside it.

    BOS is what the tokenizer itself puts before a text, as in transformers 5: `add_bos_token` in
    `tokenizer_config.json` is ignored, and so is a `bos_token` that the tokenizer does not put there. EOS is named in
    `tokenizer_config.json`; `generation_config.json` and `config.json` may add ids that end a text. Tokens with a role
    in `tokenizer_config.json` are special, as in transformers, and get the next ids if no file gives them ids. Tokens
    added after training may be named only beside `tokenizer.json`. Transformers' Llama classes, and only these, obey an
    `add_prefix_space` that is false.

    Ids of ordinary text are those of the library, except where it would give a special token: then the text is encoded
    by the same model without the special tokens in its vocabulary. The unknown token, which replaces a character
    without an id, is the only special token that a text can have. A single character of the vocabulary is needed to
    spell text, so it is special only as BOS, EOS or UNK, whatever the files say: some pad Llama 3 with "!".
    """

    def __init__(
        self, content: dict[str, Any], folder: Path | None = None, config: dict[str, Any] | None = None
    ) -> None:
        """`config` has what the files of `folder` do not say. Raises LlucidError for a file that the library refuses,
        for ids far beyond the size of the file, and for steps by which a text could take all memory or time."""
        self.config = folder_config(folder) if folder else {}
        self.config |= {key: value for key, value in (config or {}).items() if self.config.get(key) in (None, "")}
        added = added_in(folder, self.config) if folder else {}
        with library_errors("tokenizer.json cannot be read", quiet=True):
            content = content | typed_steps(around_a_word(content))
        self.bos = begins_with(content["post_processor"])
        content = with_special(content, self.config, self.bos, added)
        if self.config.get("add_prefix_space") is False and "LlamaTokenizer" in str(self.config.get("tokenizer_class")):
            content |= {kind: without_prefix(content[kind]) for kind in KINDS if kind != "post_processor"}
        with library_errors("tokenizer.json cannot be read", quiet=True):
            refuse_growth(content)
            self.grows = grows(content["normalizer"])
            if self.grows:  # the library normalises added tokens when it opens the file
                tokens = [added["content"] for added in content["added_tokens"] if added.get("normalized", True)]
                refuse_longer(around_a_word(content).normalizer.normalize_str, "".join(tokens))
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
            roles = role_tokens(self.config) if folder else {}
            names = {name: flags for name, flags in roles.items() if self.tokenizer.token_to_id(name) is None}
            self.tokenizer.add_tokens(
                [AddedToken(name, normalized=False, special=True, **flags) for name, flags in names.items()]
            )
            refuse_vanishing(self.tokenizer)
            tokens = self.tokenizer.get_added_tokens_decoder().values()
            steps = chain.from_iterable(steps_of(content[kind]) for kind in KINDS if kind != "post_processor")
            overlap = any(token.lstrip or token.rstrip for token in tokens)
            self.panics = overlap or any(map(may_panic, steps))
        self.tokenizer.encode_special_tokens = True  # "<|eot_id|>" in a text is text
        self.tokenizer.no_truncation()  # some files ask for it, for every text
        self.tokenizer.no_padding()
        for number, token in added.items():
            if (found := self.tokenizer.token_to_id(name := token["content"])) != number:
                raise LlucidError(
                    f"the added token {name!r} has the id {found} here and in transformers, but {folder} says "
                    f"{number}; correct it in tokenizer_config.json or added_tokens.json"
                )

        self.added = self.tokenizer.get_added_tokens_decoder()
        self.next_ids = {self.tokenizer.token_to_id(name) for name in names}
        """Of tokens whose id is in no file."""
        self.special = {token.content: number for number, token in sorted(self.added.items()) if token.special}
        in_model = {*self.tokenizer.get_vocab(with_added_tokens=False).values()}
        self.vocab_size = max(in_model | self.added.keys(), default=-1) + 1
        self.reachable = in_model.intersection(self.special.values())  # the model itself could give these
        if self.bos is not None and self.bos >= self.vocab_size:
            raise LlucidError(
                f"tokenizer.json begins texts with {self.bos}, which is none of its {self.vocab_size} ids"
            )
        self.eos = self.named("eos_token")
        ends = end_ids(folder) & self.added.keys() if folder else set[int]()
        self.stop_ids = frozenset(ends if self.eos is None else ends | {self.eos})

    def named(self, role: str) -> int | None:
        """The id of what `tokenizer_config.json` calls "bos_token", "eos_token" and so on."""
        name = name_of(role, self.config)
        return None if name is None else self.tokenizer.token_to_id(name)

    def within(self, vocab_size: int) -> "JsonTokenizer":
        """The same without added tokens beyond the ids of a model, such as a pad token that was never trained; itself
        if a text begins or ends with one of them that a file gives its id."""
        beyond = {number for number in (self.bos, *self.stop_ids) if number is not None and number >= vocab_size}
        if not beyond <= self.next_ids:
            return self
        content = json.loads(self.json())
        content["added_tokens"] = [added for added in content["added_tokens"] if added["id"] < vocab_size]
        made = JsonTokenizer(content, config=self.config)
        made.stop_ids = self.stop_ids - beyond
        return made

    def encode(self, text: str) -> list[int]:
        text = replace_surrogates(text)
        with library_errors("the text cannot be encoded", self.panics):
            if self.grows:
                refuse_longer(self.tokenizer.normalizer.normalize_str, text)
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if self.reachable.isdisjoint(ids):
                return ids
            library, unknown = self.without_special
            ids = library.encode(text, add_special_tokens=False).ids
        if lost := (self.reachable - {unknown}).intersection(ids):
            raise LlucidError(f"the text has a character that this tokenizer has only as the special token {min(lost)}")
        return ids

    @cached_property
    def without_special(self) -> tuple[tokenizers.Tokenizer, int | None]:
        """(the library's tokenizer in which no special token is in the model's vocabulary, the id of unknown pieces).

        Their ids remain, under names that nobody can guess: the ids of a Unigram model are places in a list.
        """
        content = json.loads(self.tokenizer.to_str())
        model = content["model"]
        secret = secrets.token_hex(16)
        vocabulary = vocabulary_of(model)
        names = {piece: f"{secret}{number}" for piece, number in vocabulary.items() if number in self.reachable}
        unknown = model.get("unk_id") if "unk_id" in model else vocabulary.get(model.get("unk_token"))
        if isinstance(model["vocab"], list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        else:
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
            # Without an unknown token BPE would leave characters out: the first special one reports them.
            unk = model.get("unk_token")
            model["unk_token"] = next(iter(names.values())) if unk is None else names.get(unk, unk)
        if "merges" in model:
            joint = len(model.get("continuing_subword_prefix") or "")
            model["merges"] = [
                [left, right]
                for left, right in model["merges"]
                if names.keys().isdisjoint((left, right, left + right[joint:]))
            ]
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        content["post_processor"] = None
        made = tokenizers.Tokenizer.from_str(json.dumps(content))
        made.encode_special_tokens = True
        return made, unknown

    def decode(self, ids: Sequence[int]) -> str:
        with library_errors("the tokens cannot be decoded", self.panics):
            return self.tokenizer.decode(ids, skip_special_tokens=True)

    def piece(self, id: int) -> bytes:
        text = self.tokenizer.id_to_token(id)
        if text is None or text in self.special:
            return b""
        decoder: Any = self.tokenizer.decoder
        steps = b"" if decoder is None else decoder.__getstate__()
        if b'"ByteFallback"' in steps and (byte := BYTE_PIECE.fullmatch(text.encode())):
            return bytes([int(byte[1], 16)])
        if b'"ByteLevel"' in steps:
            known = all(letter in BYTE_OF_LETTER for letter in text)
            return bytes(BYTE_OF_LETTER[letter] for letter in text) if known else text.encode()
        # A decoder may remove the spaces that a text begins with.
        return self.decode([*self.word, id])[len(self.decode(self.word)) :].encode()

    @cached_property
    def word(self) -> list[int]:
        """A token that is more than spaces, if there is one."""
        return [*islice((token for token in range(self.vocab_size) if self.decode([token]).strip()), 1)]

    def json(self) -> str:
        return self.tokenizer.to_str()

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), self.config, self.stop_ids)


def vocabulary_of(model: object) -> dict[str, int]:
    """The ids of the pieces of a `tokenizer.json`'s model; empty for a form that only the library knows."""
    match model:
        case {"vocab": dict(vocabulary)}:
            return dict[str, int](vocabulary)
        case {"vocab": list(rows)}:
            named = [(n, row[0]) for n, row in enumerate(list[Any](rows)) if isinstance(row, list) and row]
            return {name: n for n, name in named if isinstance(name, str)}
        case _:
            return {}


def with_special(
    content: dict[str, Any], config: dict[str, Any], bos: int | None, more: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """A `tokenizer.json` in which `more` tokens are added, and BOS and all tokens with a role are marked as special.

    Raises LlucidError for ids that are not whole numbers, or are far larger than the file.
    """
    vocabulary = vocabulary_of(content.get("model"))
    names = [*role_names(config), *(piece for piece, number in vocabulary.items() if number == bos)]
    with library_errors("tokenizer.json cannot be read"):
        added = {token["content"]: dict[str, Any](token) for token in content.get("added_tokens") or []}
        for number, token in sorted(more.items()):
            known = added.get(name := token["content"]) or special_token(name, number, special=False)
            added[name] = known | token | {"special": known.get("special") or token["special"]}
        model = dict[str, Any](content.get("model") or {})
        marks = {name_of(role, config) for role in ("bos_token", "eos_token", "unk_token")} | {model.get("unk_token")}
        for name in names:
            if name in added:
                added[name]["special"] = True
            elif name in vocabulary and (len(name) > 1 or name in marks):
                added[name] = special_token(name, vocabulary[name])
        if prefix := model.get("continuing_subword_prefix"):  # which the library cuts off without looking, and aborts
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
            if not prefix.isascii() or not all(right.startswith(prefix) for *_, right in pairs):
                raise LlucidError(f"tokenizer.json cannot be read: a merge is without the prefix {prefix!r}")
        for name, token in added.items():
            if len(name) == 1 and vocabulary.get(name, bos) != bos and name not in marks:
                token["special"] = False
        ids = [*vocabulary.values(), *(token["id"] for token in added.values())]
        most = max(MOST_IDS, 2 * len(ids))
        if any(type(number) is not int or not 0 <= number < most for number in ids):
            raise LlucidError(f"tokenizer.json cannot be read: its {len(ids)} ids should be whole numbers below {most}")
    return content | {"added_tokens": [*added.values()]}


def special_token(name: str, number: int, special: bool = True, like: AddedToken | None = None) -> dict[str, Any]:
    """An entry of added_tokens; it includes white space as another token does."""
    flags = {flag: like is not None and getattr(like, flag) for flag in STRIPS}
    return {"id": number, "content": name, **flags, "normalized": False, "special": special}


def begins_with(post_processor: dict[str, Any] | None) -> int | None:
    """The id that a post-processor puts before a text, if any, tried on a text of one ordinary word."""
    with library_errors("tokenizer.json cannot be read", quiet=True):
        begun = around_a_word({"post_processor": post_processor})
        refuse_growth(typed_steps(begun))
        found = begun.encode("a")
    return found.ids[0] if found.special_tokens_mask[:1] == [1] else None


def special_json(
    model: dict[str, Any],
    special: dict[str, int],
    bos: int | None,
    *,
    normalizer: list[dict[str, Any]],
    pre_tokenizer: list[dict[str, Any]],
    decoder: list[dict[str, Any]],
    unmarked: Mapping[str, int] | None = None,
    flags: Mapping[int, AddedToken] | None = None,
) -> str:
    """A `tokenizer.json` around `model`, with special tokens by name; transformers' own calls begin with BOS.

    Tokens that are `unmarked` are not special, but found in text before it is split. `flags` say by id which tokens
    include the white space beside them."""

    def chain(kind: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"type": "Sequence", kind: steps} if steps else None

    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            special_token(name, number, name in special, (flags or {}).get(number))
            for name, number in sorted((special | dict(unmarked or {})).items(), key=itemgetter(1))
        ],
        "normalizer": chain("normalizers", normalizer),
        "pre_tokenizer": chain("pretokenizers", pre_tokenizer),
        "post_processor": None,
        "decoder": chain("decoders", decoder),
        "model": model,
    }
    for name, number in special.items():
        if number == bos:
            content["post_processor"] = beginning_with(name, number)
    return json.dumps(content, ensure_ascii=False)


def beginning_with(name: str, number: int) -> dict[str, Any]:
    """The post-processor that puts a special token before every text."""
    begin, first, second = ({"SpecialToken": {"id": name, "type_id": kind}} for kind in (0, 0, 1))
    texts = [{"Sequence": {"id": letter, "type_id": kind}} for kind, letter in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [begin, texts[0]],
        "pair": [first, texts[0], second, texts[1]],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
