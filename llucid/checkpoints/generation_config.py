"""The sampling settings of a Hugging Face folder: the defaults of `generate` and `chat` for its model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError, note, shown
from llucid.files import read_json, write_text_atomically

FILE = "generation_config.json"

LARGEST = 1e9
"""Larger numbers are ignored: they may not even be numbers that float can hold."""
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(path: Path) -> dict[str, Any]:
    """The sampling settings in the folder's `generation_config.json`, by their names in `generation.Sampling`; in older
    folders without one, those in `config.json`.

    Empty if the file is damaged, as some published ones are, or if it does not say `do_sample`.
    """
    file = path / (FILE if (path / FILE).exists() else "config.json")
    try:
        config = read_json(file)
    except LlucidError:
        return {}
    return checked_settings(config, file) if config.get("do_sample") is True else {}


def checked_settings(values: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Those of the `values` that are sampling settings; one that is not a number is ignored, with a note."""
    found = {name: values[name] for name in SETTINGS if values.get(name) is not None}
    if found.get("top_k") in (0, -1):  # in transformers and vLLM, that is no limit
        del found["top_k"]
    for name, value in list(found.items()):
        kinds = (int,) if name == "top_k" else (int, float)
        if type(value) not in kinds or not 0 <= value < LARGEST:
            expected = "a whole number" if name == "top_k" else "a number of at least 0"
            note(f"{place}: {name} is ignored: it should be {expected} and is {shown(value)}")
            del found[name]
    return found


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
