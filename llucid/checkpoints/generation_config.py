"""The sampling settings of a Hugging Face folder: the defaults of `generate` and `chat` for its model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError
from llucid.files import read_json, write_text_atomically

FILE = "generation_config.json"

LARGEST = 1e9
"""Larger numbers are ignored: they may not even be numbers that float can hold."""
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(path: Path) -> dict[str, Any]:
    """The sampling settings in the folder's `generation_config.json`, by their names in `generation.Sampling`.

    Empty if there is no such file, if it is damaged, as some published ones are, or if it does not say `do_sample`.
    """
    try:
        config = read_json(path / FILE)
    except LlucidError:
        return {}
    found = {name: config[name] for name in SETTINGS if type(config.get(name)) in (int, float)}
    found = {name: number for name, number in found.items() if abs(number) < LARGEST}
    if type(found.get("top_k")) is not int or found["top_k"] == 0:  # in transformers, 0 is no limit
        found.pop("top_k", None)
    return found if config.get("do_sample") is True else {}


def write_sampling(folder: Path, sampling: Mapping[str, Any]) -> None:
    """Adds sampling settings to the folder's `generation_config.json`; nothing if there are none."""
    if sampling:
        config = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        config |= {"do_sample": True, **sampling}
        write_text_atomically(folder / FILE, json.dumps(config, indent=2) + "\n")


def copy_generation_config(folder: Path, out: Path, token_ids: bool) -> None:
    """Copies the folder's `generation_config.json` to another; a missing or damaged file is not copied.

    `token_ids`: whether the ids of BOS, EOS and so on are also copied. Ids that are in the file in `out` are kept.
    """
    try:
        config = read_json(folder / FILE)
    except LlucidError:
        return
    kept = {key: value for key, value in config.items() if token_ids or not key.endswith("_token_id")}
    if (out / FILE).is_file():
        kept |= read_json(out / FILE)
    write_text_atomically(out / FILE, json.dumps(kept, indent=2) + "\n")
