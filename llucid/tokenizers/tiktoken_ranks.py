"""Llama 3's `tokenizer.model`: byte pairs by rank, one per line in base64, merged by the tiktoken library."""

import binascii
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tiktoken

from llucid.errors import LlucidError
from llucid.files import write_atomically
from llucid.tokenizers.byte_pieces import byte_letters
from llucid.tokenizers.folder import added_in, folder_config, name_of, role_names, unused_padding, write_folder
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.steps import LETTERS, SPLIT, WORDS
from llucid.tokenizers.tokenizer_json import JsonTokenizer, special_json

SPECIALS = 256
"""Number of special ids after the ranks; few of them have a name."""

NAMED: dict[str, dict[int, str]] = {
    "3.0": {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    },
    "3.1": {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        5: "<|step_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    },
}
"""Places of the named special tokens; the others are `<|reserved_special_token_0|>` and so on, in order.

From meta-llama/llama3 and meta-llama/llama-models (models/llama3_1/api/tokenizer.py, also for 3.2 and 3.3). Both have
the same file of ranks, so it does not tell them apart. Hugging Face's copies of 3.1 call id 128005 reserved, not
`<|step_id|>`, and number the reserved ones after it one higher; Meta's code for images calls 128011 `<|image|>`.
"""

LONGEST_TEXT = 400_000
LONGEST_RUN = 25_000
"""In characters. Meta's code splits longer texts and runs, because tiktoken's regular expression recurses."""

LONG_RUN = re.compile(rf"(?<!\s)\s{{{LONGEST_RUN + 1},}}|(?<!\S)\S{{{LONGEST_RUN + 1},}}")


class TiktokenRanks:
    """Byte-pair encoding by rank: of all neighbouring pairs the one of lowest rank is merged, again and again.

    Its `tokenizer.json` gives the same ids for every text that Meta's code does not split: up to 400,000 characters,
    without 25,000 of white space, or of anything else, in a row. The format cannot express that split.
    """

    def __init__(
        self,
        ranks: Sequence[bytes],
        names: Literal["3.0", "3.1"] = "3.1",
        config: Mapping[str, Any] | None = None,
        added: Mapping[int, str] | None = None,
    ) -> None:
        """`config` is the content of a `tokenizer_config.json`, and `added` names special tokens by their ids.

        Raises LlucidError if two ranks have the same bytes, or if a byte has no rank.
        """
        self.ranks = {piece: rank for rank, piece in enumerate(ranks)}
        if len(self.ranks) != len(ranks):
            raise LlucidError("two ranks have the same bytes")
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise LlucidError(f"the byte {missing[0]:#04x} has no rank, so some texts could not be encoded")

        self.config = dict(config or {})
        own = {n: name for number, name in (added or {}).items() if 0 <= (n := number - len(ranks)) < SPECIALS and name}
        self.special = {name: len(ranks) + n for n, name in enumerate(special_names(names, own))}
        begin, end = (name_of(role, self.config) or "" for role in ("bos_token", "eos_token"))
        self.bos, self.eos = self.special.get(begin, len(ranks)), self.special.get(end, len(ranks) + 1)
        self.vocab_size = len(ranks) + SPECIALS
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.stop_ids = frozenset({self.eos, *(self.special[name] for name in ends if name in self.special)})
        self.encoding = tiktoken.Encoding("llama3", pat_str=WORDS, mergeable_ranks=self.ranks, special_tokens={})

    @classmethod
    def from_bytes(cls, data: bytes, folder: Path) -> "TiktokenRanks | JsonTokenizer":
        """The tokenizer of a file and of the `tokenizer_config.json` in its folder, if there is one. It is opened as
        its `tokenizer.json` if the folder has more special tokens than Llama 3.

        Raises LlucidError if the file's lines are not base64 with the ranks 0, 1, 2 and so on.
        """
        ranks: list[bytes] = []
        for number, line in enumerate(data.splitlines()):
            piece, _, rank = line.partition(b" ")
            if rank != b"%d" % number:
                raise LlucidError(f"line {number + 1} should end with the rank {number}; the file is not whole")
            try:
                ranks.append(binascii.a2b_base64(piece, strict_mode=True))
            except binascii.Error as error:
                raise LlucidError(f"line {number + 1} is not base64 ({error})") from error
        config = folder_config(folder)
        added = {number: token["content"] for number, token in added_in(folder, config).items()}
        made = cls(ranks, "3.1", config, added)
        if {*added.values(), *role_names(config)} <= made.special.keys() | {unused_padding(config)}:
            return made
        more = JsonTokenizer(json.loads(made.json()), folder, made.roles())
        more.stop_ids |= made.stop_ids
        return more

    def encode(self, text: str) -> list[int]:
        return [token for part in split(text) for token in self.encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoding.decode([token for token in ids if token < len(self.ranks)])

    def piece(self, id: int) -> bytes:
        return self.encoding.decode_single_token_bytes(id) if id < len(self.ranks) else b""

    def json(self) -> str:
        letters = byte_letters()
        vocabulary = {piece.decode("latin-1").translate(letters): rank for piece, rank in self.ranks.items()}
        merges = [[half.decode("latin-1").translate(letters) for half in pair] for pair in merges_of(self.ranks)]
        model = {"type": "BPE", "byte_fallback": False, "ignore_merges": True, "vocab": vocabulary, "merges": merges}
        return special_json(
            model, self.special, self.bos, pre_tokenizer=[SPLIT, LETTERS], normalizer=[], decoder=[LETTERS]
        )

    def roles(self) -> dict[str, str]:
        """The names of its BOS and EOS."""
        names = {number: name for name, number in self.special.items()}
        return {"bos_token": names[self.bos], "eos_token": names[self.eos]}

    def save(self, folder: Path) -> None:
        write_folder(folder, self.json(), self.config | self.roles(), self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the file of ranks, Meta's `tokenizer.model`."""
        write_atomically(path, b"".join(b"%s %d\n" % (b64encode(piece), rank) for piece, rank in self.ranks.items()))


def is_tiktoken(head: bytes) -> bool:
    """Whether a file that begins with `head` has lines of base64 with a rank."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", head) is not None


def special_names(names: Literal["3.0", "3.1"], own: Mapping[int, str]) -> list[str]:
    """The names of the 256 special tokens, in order of their ids; `own` names some of them otherwise."""
    taken = {name: n for n, name in own.items()}
    named = {n: name for n, name in NAMED[names].items() if name not in taken} | {n: name for name, n in taken.items()}
    unnamed = (name for n in range(2 * SPECIALS) if (name := f"<|reserved_special_token_{n}|>") not in taken)
    return [named.get(n) or next(unnamed) for n in range(SPECIALS)]


def split(text: str) -> Iterator[str]:
    """Parts of at most 400,000 characters, with at most 25,000 of white space, or of anything else, in a row."""
    for start in range(0, len(text), LONGEST_TEXT):
        part = text[start : start + LONGEST_TEXT]
        begin = 0
        for run in LONG_RUN.finditer(part):
            for end in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
                yield part[begin:end]
                begin = end
        yield part[begin:]
