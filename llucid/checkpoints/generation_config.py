"""The sampling settings of a Hugging Face folder: the defaults of `generate` and `chat` for its model."""

from pathlib import Path
from typing import Any

from llucid.errors import LlucidError
from llucid.files import read_json

KINDS = {
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
}


def sampling_defaults(path: Path) -> dict[str, Any]:
    """The sampling settings in the folder's `generation_config.json`, by their names in `generation.Sampling`.

    Empty if there is no such file, if it is damaged, as some published ones are, or if it does not say `do_sample`.
    """
    try:
        config = read_json(path / "generation_config.json")
    except LlucidError:
        return {}
    found = {name: config[name] for name, kinds in KINDS.items() if type(config.get(name)) in kinds}
    if found.get("top_k") == 0:  # no limit in transformers
        del found["top_k"]
    return found if config.get("do_sample") is True else {}
