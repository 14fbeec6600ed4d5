"""Tiny Shakespeare: 1,115,394 characters of plays, on which small models are compared."""

import hashlib
import os
import urllib.request
from pathlib import Path

from llucid.errors import LlucidError
from llucid.files import write_atomically

ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAME = "tinyshakespeare.txt"


def find_shakespeare(cache: Path) -> Path:
    """The path of the file: in $LLUCID_DATA, else in the cache, else downloaded into the cache and checked.

    Raises LlucidError, which says where to put the file by hand, if it is missing and cannot be downloaded.
    """
    given = os.environ.get("LLUCID_DATA")
    if given and (file := Path(given) / NAME).is_file():
        return file
    file = cache / NAME
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256:
        return file
    try:
        with urllib.request.urlopen(ADDRESS, timeout=20) as answer:
            text = answer.read()
    except OSError as error:
        reason = getattr(error, "reason", error)  # urllib hides the system's error in one of its own
        reason = getattr(reason, "strerror", None) or reason
        raise LlucidError(
            f"Tiny Shakespeare is not on this machine and cannot be downloaded ({reason}); put the file from {ADDRESS} "
            f"at {file}, or train with corpus=fables, which needs no network"
        ) from error
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise LlucidError(f"{ADDRESS}: no longer Tiny Shakespeare (its SHA-256 should be {SHA256})")
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    return file
