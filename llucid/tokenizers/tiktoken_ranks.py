"""Llama 3's `tokenizer.model`: byte pairs by rank, one per line in base64, merged by the tiktoken library."""

import binascii
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import tiktoken

from llucid.errors import LlucidError
from llucid.files import atomic_file
from llucid.tokenizers.byte_pieces import byte_letters
from llucid.tokenizers.folder import write_folder
from llucid.tokenizers.merges import merges_of
from llucid.tokenizers.tokenizer_json import LETTERS, SPLIT, WORDS, special_json

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

    def __init__(self, ranks: Sequence[bytes], names: Literal["3.0", "3.1"] = "3.1") -> None:
        """Raises LlucidError if two ranks have the same bytes, or if a byte has no rank."""
        self.ranks = {piece: rank for rank, piece in enumerate(ranks)}
        if len(self.ranks) != len(ranks):
            raise LlucidError("two ranks have the same bytes")
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise LlucidError(f"the byte {missing[0]:#04x} has no rank, so some texts could not be encoded")

        self.special = {name: len(ranks) + n for n, name in enumerate(special_names(names))}
        self.vocab_size = len(ranks) + SPECIALS
        self.bos = self.special["<|begin_of_text|>"]
        self.eos = self.special["<|end_of_text|>"]
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.stop_ids = frozenset(self.special[name] for name in ends if name in self.special)
        self.encoding = tiktoken.Encoding("llama3", pat_str=WORDS, mergeable_ranks=self.ranks, special_tokens={})

    @classmethod
    def from_bytes(cls, data: bytes, names: Literal["3.0", "3.1"] = "3.1") -> "TiktokenRanks":
        """The tokenizer of a file. Raises LlucidError if its lines are not base64 with the ranks 0, 1, 2 and so on."""
        ranks: list[bytes] = []
        for number, line in enumerate(data.splitlines()):
            piece, _, rank = line.partition(b" ")
            if rank != b"%d" % number:
                raise LlucidError(f"line {number + 1} should end with the rank {number}; the file is not whole")
            try:
                ranks.append(binascii.a2b_base64(piece, strict_mode=True))
            except binascii.Error as error:
                raise LlucidError(f"line {number + 1} is not base64 ({error})") from error
        return cls(ranks, names)

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

    def save(self, folder: Path) -> None:
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        write_folder(folder, self.json(), config, self.stop_ids)

    def write(self, path: Path) -> None:
        """Writes the file of ranks, Meta's `tokenizer.model`."""
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(b"%s %d\n" % (b64encode(piece), rank) for piece, rank in self.ranks.items()))


def is_tiktoken(head: bytes) -> bool:
    """Whether a file that begins with `head` has lines of base64 with a rank."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", head) is not None


def special_names(names: Literal["3.0", "3.1"]) -> list[str]:
    """The names of the 256 special tokens, in order of their ids."""
    named = NAMED[names]
    unnamed = (f"<|reserved_special_token_{n}|>" for n in range(SPECIALS))
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
