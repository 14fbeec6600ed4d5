"""Tokenizers that live in a `tokenizer.json`, the format of the `tokenizers` library; and training one of our own."""

import json
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llucid.errors import LlucidError
from llucid.files import write_text_atomically
from llucid.tokenizers.text import replace_surrogates

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text before it merges: words with the space before them, three digits at most, punctuation."""
SPLIT: dict[str, Any] = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
LETTERS: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
"""The step that cuts so, and the one that spells bytes by visible letters."""


@contextmanager
def said(what: str) -> Generator[None]:
    """Makes an LlucidError of what the library raises: bare Exceptions, and for a panic of its Rust not even these."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, LlucidError):
        raise
    except BaseException as error:
        raise LlucidError(f"{what}: {error}") from error


class JsonTokenizer:
    """A `tokenizer.json` and what stands beside it.

    BOS is what the tokenizer itself puts before a text, if anything, as in transformers: not all that name one in
    `tokenizer_config.json` begin with it. EOS is named there; `generation_config.json` and `config.json` may add ids
    that end a text. `chat_template.jinja` is the newer place of a chat template, and counts before the one in
    `tokenizer_config.json`. Tokens that were added after training may be named beside `tokenizer.json` alone.
    """

    def __init__(
        self, content: dict[str, Any], folder: Path | None = None, config: dict[str, Any] | None = None
    ) -> None:
        """What `folder` does not say, `config` may."""
        with said("tokenizer.json cannot be read"):
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        self.tokenizer.encode_special_tokens = True  # "<|eot_id|>" in a text is text
        self.tokenizer.no_truncation()  # as some folders ask for, of every text and without a word
        self.tokenizer.no_padding()
        self.config = (config or {}) | (folder_config(folder) if folder else {})
        known = {token.content: token.special for token in self.tokenizer.get_added_tokens_decoder().values()}
        for number, token in sorted(added_in(folder, self.config).items()) if folder else ():
            if known.get(token.content) == token.special:
                continue
            with said(f"the added token {token.content!r}"):
                (self.tokenizer.add_special_tokens if token.special else self.tokenizer.add_tokens)([token])
            if (found := self.tokenizer.token_to_id(token.content)) != number:
                raise LlucidError(f"the added token {token.content!r} has the id {found}, but {folder} says {number}")

        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in sorted(added.items()) if token.special}
        self.bos = begins_with(content.get("post_processor"))
        if self.bos is not None and self.bos >= self.vocab_size:
            raise LlucidError(
                f"tokenizer.json begins texts with {self.bos}, which is none of its {self.vocab_size} ids"
            )
        self.eos = self.named("eos_token")
        told = {number for number in ends_in(folder) if number in added} if folder else set[int]()
        self.stop_ids = frozenset(told if self.eos is None else told | {self.eos})

    def named(self, role: str) -> int | None:
        """The id of what `tokenizer_config.json` calls "bos_token", "eos_token" and so on."""
        name = name_of(role, self.config)
        return None if name is None else self.tokenizer.token_to_id(name)

    def within(self, vocab_size: int) -> "JsonTokenizer":
        """The same without added tokens that a model of this vocabulary has no numbers for, as a pad token that nobody
        trained; itself if a text begins or ends with one of them."""
        if any(number is not None and number >= vocab_size for number in (self.bos, *self.stop_ids)):
            return self
        content = json.loads(self.json())
        content["added_tokens"] = [added for added in content["added_tokens"] if added["id"] < vocab_size]
        made = JsonTokenizer(content, config=self.config)
        made.stop_ids = self.stop_ids
        return made

    def encode(self, text: str) -> list[int]:
        with said("the text cannot be encoded"):
            return self.tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        with said("the tokens cannot be decoded"):
            return self.tokenizer.decode(ids, skip_special_tokens=True)

    def json(self) -> str:
        return self.tokenizer.to_str()

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), self.config, self.stop_ids)


def name_of(role: str, config: Mapping[str, Any]) -> str | None:
    """The text of the token that a `tokenizer_config.json` gives a role such as "bos_token"."""
    return text_of(config.get(role))


def text_of(token: object) -> str | None:
    """The text of a token that is told alone or with flags."""
    told = dict[str, object](token).get("content") if isinstance(token, dict) else token
    return told if isinstance(told, str) else None


def begins_with(post_processor: dict[str, Any] | None) -> int | None:
    """The id that a post-processor puts before a text, if any: here, before one word that is no special token."""
    one_word = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "post_processor": post_processor}
    none = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    with said("tokenizer.json cannot be read"):
        begun = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": []} | none | one_word))
        found = begun.encode("a")
    return found.ids[0] if found.special_tokens_mask[:1] == [1] else None


def folder_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's `tokenizer_config.json`, with the template of `chat_template.jinja`, if it has these.

    Templates with names of their own are in `additional_chat_templates`. Which token is BOS and so on, older folders
    say in `special_tokens_map.json`: it counts where the former lists no added tokens, as in transformers. Raises
    LlucidError if one of them cannot be read.
    """
    beside, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    roles = folder / "special_tokens_map.json"
    config = read_json(beside) if beside.is_file() else {}
    if roles.is_file() and "added_tokens_decoder" not in config:
        told = read_json(roles)
        config |= {role: name for role in told if role.endswith("_token") and (name := name_of(role, told)) is not None}
        if isinstance(more := told.get("additional_special_tokens"), list):
            config["additional_special_tokens"] = [text_of(one) for one in list[object](more)]
    named = {"default": template} if template.is_file() else {}
    named |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    texts: list[dict[str, str]] = []
    for name, file in named.items():
        try:
            texts.append({"name": name, "template": file.read_text(encoding="utf-8")})
        except UnicodeDecodeError as error:
            raise LlucidError(f"{file}: cannot be read ({error})") from error
    if texts:
        config["chat_template"] = texts[0]["template"] if [*named] == ["default"] else texts
    return config


FLAGS = ("single_word", "lstrip", "rstrip", "special")
"""What is told of an added token beside its text. That it is normalised is not heeded: a space would be part of it."""


def added_in(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens that a folder says were added to its tokenizer, by id.

    They are in its `tokenizer_config.json`, that is in `config`, or, in older folders, in `added_tokens.json`, where
    those are special that have a role. Raises LlucidError if there is something else.
    """
    file, told = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if told is None:
        file = folder / "added_tokens.json"
        more = config.get("additional_special_tokens")
        names = {text_of(one) for one in (more if isinstance(more, list) else [])}
        names |= {name_of(role, config) for role in config if role.endswith("_token")}
        told = {
            number: {"content": name, "special": name in names}
            for name, number in (read_json(file) if file.is_file() else {}).items()
        }
    try:
        return {
            int(number): AddedToken(
                token["content"], normalized=False, **{flag: token.get(flag, False) for flag in FLAGS}
            )
            for number, token in dict[Any, dict[str, Any]](told).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LlucidError(f"{file}: its added tokens are not texts and ids ({error})") from error


def ends_in(folder: Path) -> set[int]:
    """The ids that a folder's generation_config.json and config.json call the end of a text.

    transformers writes Llama 2's ids there for want of others: only those that are no ordinary token may be believed.
    """
    ends: set[int] = set()
    for file in (folder / "generation_config.json", folder / "config.json"):
        try:
            told = read_json(file).get("eos_token_id") if file.is_file() else None
        except LlucidError:  # published folders have a generation_config.json that is no JSON
            continue
        ends.update(number for number in (told if isinstance(told, list) else [told]) if type(number) is int)
    return ends


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises LlucidError if the file holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LlucidError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise LlucidError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_folder(
    folder: Path, tokenizer_json: str, config: dict[str, Any], stop_ids: frozenset[int] = frozenset()
) -> None:
    """Writes `tokenizer.json` and a `tokenizer_config.json` that tells AutoTokenizer what it is.

    If other ids than that of EOS end a text, `generation_config.json` says which, as nothing else can; an older one is
    replaced.
    """
    write_text_atomically(folder / "tokenizer.json", tokenizer_json)
    write_beside(folder, config, stop_ids)


def write_beside(folder: Path, config: dict[str, Any], stop_ids: frozenset[int]) -> None:
    """Writes what `write_folder` does but for the `tokenizer.json`."""
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    beside = folder / "generation_config.json"
    if len(stop_ids) > (name_of("eos_token", config) is not None) or beside.is_file():
        write_text_atomically(beside, json.dumps({"eos_token_id": sorted(stop_ids) or None}, indent=2) + "\n")


def special_json(
    model: dict[str, Any],
    special: dict[str, int],
    bos: int | None,
    *,
    normalizer: list[dict[str, Any]],
    pre_tokenizer: list[dict[str, Any]],
    decoder: list[dict[str, Any]],
    unmarked: Mapping[str, int] | None = None,
) -> str:
    """A `tokenizer.json` around `model`, with special tokens by name; transformers' own calls begin with BOS.

    Tokens that are `unmarked` are not special, but found in text before it is cut."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def chain(kind: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"type": "Sequence", kind: steps} if steps else None

    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name, **flags, "special": name in special}
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
    """Does `work`, which computes outside of Python for long, so that signals are heeded meanwhile."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def train_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), config: dict[str, Any] | None = None
) -> JsonTokenizer:
    """Byte-pair encoding over bytes, so that every text has ids: the commonest pair becomes a token, again and again.

    Sennrich et al. 2016, §3.2, on bytes as Radford et al. 2019 (GPT-2), §2.2. The `special` tokens have the first ids;
    `config` is what `tokenizer_config.json` is to say; a BOS that it names begins every text. Raises LlucidError if
    `vocab_size` is not above 256, the number of bytes, and that of the special tokens.
    """
    if vocab_size <= 256 + len(special):
        raise LlucidError(
            f"bpe:{vocab_size}: a byte-level vocabulary needs more than its {256 + len(special)} bytes"
            f"{' and special tokens' if special else ''}, as in bpe:1024"
        )
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
