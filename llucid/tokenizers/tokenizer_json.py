"""Tokenizers in a `tokenizer.json`, the format of the `tokenizers` library; and training one of our own."""

import base64
import json
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from llucid.errors import LlucidError
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
from llucid.tokenizers.text import replace_surrogates

LARGEST_TOKENIZER = 2**27
"""Bytes of a `tokenizer.json`; published ones have up to 35 million."""
MOST_IDS = 2**18
"""Ids that even a small `tokenizer.json` may have: the library allocates memory for every id up to the largest."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's words: letters with the space before them, three digits at most, punctuation. Merges stay within a word."""
SPLIT: dict[str, Any] = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
"""The step that splits a text into these words."""
LETTERS: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""The step that writes each byte as a visible character."""


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
        and for ids far beyond the size of the file."""
        self.config = folder_config(folder) if folder else {}
        self.config |= {key: value for key, value in (config or {}).items() if self.config.get(key) in (None, "")}
        added = added_in(folder, self.config) if folder else {}
        self.bos = begins_with(content.get("post_processor"))
        content = with_special(content, self.config, self.bos, added)
        if self.config.get("add_prefix_space") is False and "LlamaTokenizer" in str(self.config.get("tokenizer_class")):
            content |= {step: without_prefix(content.get(step)) for step in ("normalizer", "pre_tokenizer", "decoder")}
        steps = {name: steps_of(content.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
        with library_errors("tokenizer.json cannot be read", quiet=True):
            before_words = [*steps["normalizer"], *steps["pre_tokenizer"]]
            for name, inner in (steps | {"pre_tokenizer": before_words}).items():
                if len(inner) > MOST_STEPS:
                    raise ValueError(f"its {name} has {len(inner):,} steps")
                if (times := growth(inner)) > MOST_GROWTH:
                    raise ValueError(f"its {name} makes texts {times:.0e} times as long")
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
            roles = role_tokens(self.config) if folder else {}
            names = {name: flags for name, flags in roles.items() if self.tokenizer.token_to_id(name) is None}
            self.tokenizer.add_tokens(
                [AddedToken(name, normalized=False, special=True, **flags) for name, flags in names.items()]
            )
            normal = self.tokenizer.normalizer
            refuse_vanishing(steps["normalizer"], self.tokenizer)
            self.panics = any(map(may_panic, chain(*steps.values()))) or any(
                # They overlap, or one that becomes empty is found inside characters.
                token.lstrip
                or token.rstrip
                or (token.normalized and normal and not normal.normalize_str(token.content))
                for token in self.tokenizer.get_added_tokens_decoder().values()
            )
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


SAFE = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "ByteLevel", "Metaspace", "Digits", "Punctuation"),
    *("Whitespace", "WhitespaceSplit", "ByteFallback", "Fuse"),
}
"""Steps in which the library has never been seen to panic, whatever their settings."""


def steps_of(step: Any) -> list[Any]:
    """The single steps of a normalizer, pre-tokenizer or decoder."""
    match step:
        case None:
            return []
        case {"type": "Sequence", **lists}:
            parts = [part for parts in lists.values() if isinstance(parts, list) for part in list[Any](parts)]
            return [*chain(*map(steps_of, parts))]
        case _:
            return [step]


def may_panic(step: Any) -> bool:
    """Whether the library might panic in a single step."""
    match step:
        case {"type": "Replace" | "Split", "pattern": {"String": text}}:
            return not text or step.get("content") == ""
        case {"type": "Split", "pattern": pattern}:
            return pattern != SPLIT["pattern"]
        case {"type": "Prepend", "prepend": text}:
            return not text
        case {"type": "Strip", "stop": 0}:
            return False
        case {"type": kind}:
            return kind not in SAFE
        case _:
            return True


MOST_STEPS, MOST_GROWTH = 100, 10_000


def growth(steps: Sequence[Any]) -> float:
    """How many times as long the steps can make a text."""
    times, settled = 1.0, set[str]()
    for step in steps:
        match step:
            case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" as kind}:
                if kind[:2] not in settled:  # they leave their own result as it is
                    times *= 2 if kind == "Lowercase" else 18  # İ in lower case is two characters, NFKD of ﷺ is 18
                settled.add(kind[:2])
                continue
            case {"type": "Replace", "pattern": {"String": str(part)}, "content": str(text)} if part:
                times *= max(1.0, len(text) / len(part))
            case {"type": "Replace", "content": str(text)}:  # it may also find nothing, between all letters
                times *= 1 + len(text)
            case {"type": "Prepend", "prepend": str(text)}:
                times *= 1 + len(text)
            case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
                times *= longest_text(base64.b64decode(table))
            case {"type": "Metaspace" | "BertNormalizer" | "ByteLevel"}:
                times *= 4
            case _:
                continue
        settled.clear()
    return times


def longest_text(charsmap: bytes) -> int:
    """Characters of the longest text that SentencePiece's `charsmap` puts in place of a character: its size, a table of
    that size, and the texts, each with NUL at its end."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    return max(len(text.decode(errors="replace")) for text in texts)


def refuse_vanishing(steps: Sequence[Any], library: tokenizers.Tokenizer) -> None:
    """Raises ValueError for an added token that the normalizer makes empty, if a step also finds nothing, between all
    letters: the library looks for it forever."""
    normal: Any = library.normalizer
    tokens = library.get_added_tokens_decoder().values()
    for token in tokens if normal else ():
        if token.normalized and not normal.normalize_str(token.content):
            patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Replace"]
            probes = [normalizers.Replace(Regex(one), "+").normalize_str("\u0378") for one in patterns if one]
            if any("+" in probe for probe in probes):
                raise ValueError(f"its normalizer removes the added token {token.content!r} and adds others everywhere")


def without_prefix(step: Any) -> Any:
    """A normalizer, pre-tokenizer or decoder that neither puts a space before a text nor removes one there."""
    match step:
        case {"type": "Sequence", **lists}:
            kept = {key: [without_prefix(part) for part in parts] for key, parts in lists.items()}
            return {"type": "Sequence", **{key: [part for part in parts if part] for key, parts in kept.items()}}
        case {"type": "Prepend"} | {"type": "Strip", "content": " ", "start": 1}:
            return None
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case _:
            return step


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
        for name in names:
            if name in added:
                added[name]["special"] = True
            elif name in vocabulary and len(name) > 1:
                added[name] = special_token(name, vocabulary[name])
        model = dict[str, Any](content.get("model") or {})
        if prefix := model.get("continuing_subword_prefix"):  # which the library cuts off without looking, and aborts
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
            if not prefix.isascii() or not all(right.startswith(prefix) for *_, right in pairs):
                raise LlucidError(f"tokenizer.json cannot be read: a merge is without the prefix {prefix!r}")
        marks = {name_of(role, config) for role in ("bos_token", "eos_token", "unk_token")} | {model.get("unk_token")}
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
    one_word = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "post_processor": post_processor}
    none = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    with library_errors("tokenizer.json cannot be read", quiet=True):
        begun = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": []} | none | one_word))
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


LONGEST_WORD = 64
"""Characters: longer words are cut before merges are learned, which takes time quadratic in a word's length."""


def _interruptible(work: Callable[[], None]) -> None:
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
    _interruptible(lambda: tokenizer.train_from_iterator(texts, trainer))
    tokenizer.pre_tokenizer = steps
    content = json.loads(tokenizer.to_str())
    if bos := (config or {}).get("bos_token"):
        content["post_processor"] = beginning_with(bos, special.index(bos))
    return JsonTokenizer(content, config=config)
