"""Opens a saved tokenizer of any kind."""

import codecs
import mmap
import os
from pathlib import Path

from llucid.errors import LlucidError, NoTokenizer
from llucid.files import read_json, refuse_stand_in
from llucid.tokenizers.tokenizer import Tokenizer

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
"""Names of a folder's tokenizer, in the order of preference; its kind is recognised by its content."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved at `path`: a file of any kind that llucid knows, or a folder that holds one.

    The kinds are `tokenizer.json`, Llama 3's tiktoken ranks, Llama 2's SentencePiece model and llama2.c's
    `tokenizer.bin`, recognised by their content. Raises LlucidError if there is none or if it cannot be read.
    """
    file = tokenizer_file(Path(path))
    try:
        return _open(file)
    except LlucidError as error:
        message = " ".join(str(error).split())  # a library may quote a piece that is a line break
        place = message.partition(": ")[0]  # perhaps a file beside it
        named = os.path.exists(place) and Path(place).is_relative_to(file.parent)
        raise LlucidError(message if named else f"{file}: {message}") from error
    except OSError as error:
        raise LlucidError(f"{file}: cannot be read ({error.strerror})") from error


def tokenizer_file(path: Path) -> Path:
    """The file of the tokenizer saved at `path`, a file or a folder. Raises LlucidError if there is none."""
    file = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0]) if path.is_dir() else path
    if not file.is_file() and (path / "vocab.json").is_file():
        raise NoTokenizer(
            f"{path}: its vocab.json is not a whole tokenizer; write a tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH)"
        )
    if not file.is_file():
        raise NoTokenizer(f"{file}: there is no tokenizer here; give the path of one, as in tokenizer=PATH")
    return file


def _open(file: Path) -> Tokenizer:
    from llucid.tokenizers.characters import Characters, is_characters
    from llucid.tokenizers.llama2c import Llama2cTokenizer, is_llama2c
    from llucid.tokenizers.sentencepiece_model import is_sentencepiece, open_sentencepiece
    from llucid.tokenizers.tiktoken_ranks import TiktokenRanks, is_tiktoken
    from llucid.tokenizers.tokenizer_json import LARGEST_TOKENIZER, JsonTokenizer

    # Mapped, not read: the file may be a checkpoint of many gigabytes, given by mistake.
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    head = data[:1024]
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        content = read_json(file, LARGEST_TOKENIZER)
        return Characters(content["model"]["vocab"]) if is_characters(content) else JsonTokenizer(content, file.parent)
    if is_tiktoken(head):
        return TiktokenRanks.from_bytes(data[:], file.parent)
    if is_sentencepiece(head):
        return open_sentencepiece(data[:], file.parent)
    if is_llama2c(data):
        return Llama2cTokenizer.from_bytes(data[:])
    refuse_stand_in(file)
    raise LlucidError(
        "not a tokenizer that llucid knows; expected a tokenizer.json, Llama 3's tiktoken ranks, Llama 2's "
        "SentencePiece model, or a whole tokenizer.bin of llama2.c"
    )
