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

OTHERS = {
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "num_beams"), 1),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    **dict.fromkeys(("penalty_alpha", "watermarking_config")),
}
"""Settings by which transformers writes another text and which llucid lacks, with the value that changes nothing."""
OTHERS_OF_SAMPLING = {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}
"""More of them, which only have an effect with `do_sample`."""


def sampling_defaults(path: Path) -> dict[str, Any]:
    """The sampling settings in the folder's `generation_config.json`, by their names in `generation.Sampling`; in older
    folders without one, those in `config.json`.

    As in transformers, only repetition_penalty has an effect without `do_sample`, and what says temperature 0. Settings
    that llucid lacks are noted. Empty if the file is damaged, as some published ones are.
    """
    file = path / (FILE if (path / FILE).exists() else "config.json")
    try:
        config = read_json(file)
    except LlucidError:
        return {}
    sampled = config.get("do_sample") is True
    others = OTHERS | (OTHERS_OF_SAMPLING if sampled else {})
    if lacking := [name for name, neutral in others.items() if config.get(name) not in (neutral, None, [], {})]:
        note(f"{file}: settings that llucid does not have, and ignores: {', '.join(lacking)}")
    greedy = {"temperature": 0.0} if config.get("do_sample") is False and config.get("temperature") == 0 else {}
    penalty = {"repetition_penalty": config.get("repetition_penalty")} | greedy
    return checked_settings(config if sampled else penalty, file)


def checked_settings(values: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Those of the `values` that are sampling settings; one that is not a number is ignored, with a note."""
    found = {name: values[name] for name in SETTINGS if values.get(name) is not None}
    if found.get("top_k") == -1:  # in vLLM, that is no limit; in transformers, 0
        found["top_k"] = 0
    if found.get("repetition_penalty") == 1:  # none
        del found["repetition_penalty"]
    for name, value in list(found.items()):
        kinds = (int,) if name == "top_k" else (int, float)
        if type(value) not in kinds or not 0 <= value < LARGEST:
            expected = "a whole number" if name == "top_k" else "a number of at least 0"
            note(f"{place}: {name} is ignored: it should be {expected} and is {shown(value)}")
            del found[name]
    return found


def write_sampling(folder: Path, sampling: Mapping[str, Any]) -> None:
    """Adds sampling settings to the folder's `generation_config.json`, with the ids of BOS and EOS, which transformers
    takes from no other file if there is this one; nothing if there are no settings and no such file."""
    exists = (folder / FILE).is_file()
    if sampling or exists:
        config = _token_ids(folder) | (read_json(folder / FILE) if exists else {})
        floats = {name: value if name == "top_k" else float(value) for name, value in sampling.items()}
        if set(sampling) - {"repetition_penalty"}:  # at temperature 0, transformers refuses to sample
            floats["do_sample"] = sampling.get("temperature") != 0
        config |= floats
        write_text_atomically(folder / FILE, json.dumps(config, indent=2) + "\n")


def _token_ids(folder: Path) -> dict[str, Any]:
    """The ids of BOS, EOS and so on in the folder's `config.json`."""
    config = read_json(folder / "config.json")
    return {key: value for key, value in config.items() if key.endswith("_token_id") and value is not None}


def copy_token_ids(folder: Path, out: Path) -> None:
    """Copies the ids of BOS, EOS and so on from the folder's `config.json` into that of a model without a tokenizer."""
    ids = _token_ids(folder)
    config = read_json(out / "config.json") | ids
    write_text_atomically(out / "config.json", json.dumps(config, indent=2) + "\n")


def copy_generation_config(folder: Path, out: Path, token_ids: bool) -> None:
    """Copies the folder's `generation_config.json` to another; a missing or damaged file is not copied.

    `token_ids`: whether the ids of BOS, EOS and so on are also copied. Several ids that end a text are kept as they are
    in `out`; what is in neither file comes from the `config.json` there.
    """
    try:
        config = read_json(folder / FILE)
    except LlucidError:
        return
    kept = {key: value for key, value in config.items() if token_ids or not key.endswith("_token_id")}
    ids, written = _token_ids(out), read_json(out / FILE) if (out / FILE).is_file() else {}
    kept = ids | kept | {key: value for key, value in written.items() if value != ids.get(key) or type(value) is list}
    write_text_atomically(out / FILE, json.dumps(kept, indent=2) + "\n")
