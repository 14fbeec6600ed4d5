"""The files next to a tokenizer: `tokenizer_config.json` and older forms of it, chat templates, ids that end a text.

Their content is kept as plain metadata under the keys of `tokenizer_config.json`; chat templates are not interpreted
here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llucid.errors import LlucidError
from llucid.files import first_bytes, read_file, read_json, refuse_stand_in, write_text_atomically
from llucid.tokenizers.text import replace_surrogates

LARGEST_TEMPLATE = 2**20
"""Bytes of a chat template; published ones have some 10,000."""
MOST_ROLES = 2**16
"""Tokens with a role, of which each takes a tenth of a millisecond and two kilobytes."""
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
STRIPS = ("single_word", "lstrip", "rstrip")
FLAGS = (*STRIPS, "special")
"""What is read of an added token beside its text. `normalized` is ignored: a normalizer may add a space to it."""


def text_of(token: object) -> str | None:
    """The text of a token given as a string or as an object with flags."""
    content = dict[str, object](token).get("content") if isinstance(token, dict) else token
    return replace_surrogates(content) if isinstance(content, str) else None


def typed(token: object) -> object:
    """A token of `special_tokens_map.json` as `tokenizer_config.json` writes it."""
    return token | {"__type": "AddedToken"} if isinstance(token, dict) else token


def name_of(role: str, config: Mapping[str, Any]) -> str | None:
    """The text of the token that a `tokenizer_config.json` gives a role such as "bos_token"."""
    return text_of(config.get(role))


def role_tokens(config: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """The texts of all tokens with a role, which transformers treats as special tokens, with their flags.

    They are in the order in which it gives new ids to those that are in no vocabulary. Raises LlucidError if there are
    more than MOST_ROLES."""
    roles = [role for role in config if role.endswith("_token")]
    found: list[object] = [config[role] for role in sorted(roles, key=lambda role: (*ROLES, role).index(role))]
    for key in ("model_specific_special_tokens", "extra_special_tokens", "additional_special_tokens"):
        more = config.get(key)
        found += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    tokens: dict[str, dict[str, bool]] = {}
    for token in found:
        if name := text_of(token):
            flags = dict[str, object](token) if isinstance(token, dict) else {}
            tokens.setdefault(name, {flag: bool(flags.get(flag)) for flag in STRIPS})
    if len(tokens) > MOST_ROLES:
        raise LlucidError(f"tokenizer_config.json: {len(tokens):,} special tokens are more than any model has")
    return tokens


def role_names(config: Mapping[str, Any]) -> list[str]:
    """The texts of all tokens with a role."""
    return [*role_tokens(config)]


def unused_padding(config: Mapping[str, Any]) -> str | None:
    """The text of the token that only pads: no other role has it, and no chat template writes it."""
    padding, template = name_of("pad_token", config), str(config.get("chat_template"))
    others = role_names({role: name for role, name in config.items() if role != "pad_token"})
    used = padding is None or padding in others or padding in template or "pad_token" in template
    return None if used else padding


def folder_config(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, with the templates of `chat_template.jinja` and
    `additional_chat_templates/` under the key chat_template; empty if there are none of them.

    Older folders name BOS, EOS and so on in `special_tokens_map.json`. As in transformers, it is ignored if
    `tokenizer_config.json` lists the added tokens, and its Llama class has a BOS and an EOS if no file names them.
    Raises LlucidError if a file cannot be read.
    """
    config = optional_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        roles = optional_json(folder / "special_tokens_map.json")
        config |= {role: typed(roles[role]) for role in roles if role.endswith("_token") and name_of(role, roles)}
        if isinstance(more := roles.get("additional_special_tokens"), list):
            config["additional_special_tokens"] = [typed(one) for one in list[object](more)]
    files = {"default": folder / "chat_template.jinja"} if (folder / "chat_template.jinja").exists() else {}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    texts: dict[str, Any] = {name: read_template(file) for name, file in files.items()}
    match config.get("chat_template"):
        case str(own):
            texts = {"default": own} | texts
        case dict(own):
            texts = dict[str, Any](own) | texts
        case [{"name": str(), "template": str()}, *_] as own if texts:
            named = [dict[str, Any](one) for one in list[Any](own) if isinstance(one, dict)]
            texts = {str(one.get("name")): one.get("template") for one in named} | texts
        case _:
            pass
    own = {"bos_token": "<s>", "eos_token": "</s>"}
    defaults = own if str(config.get("tokenizer_class")).startswith("LlamaTokenizer") else {}
    return defaults | config | template_config(texts)


def template_config(texts: Mapping[str, str]) -> dict[str, Any]:
    """Chat templates by name, as `tokenizer_config.json` holds them; empty if there are none. An empty text is none."""
    if not texts:
        return {}
    found = {name: text for name, text in texts.items() if text}
    if found.keys() <= {"default"}:
        return {"chat_template": found.get("default")}
    return {"chat_template": [{"name": name, "template": text} for name, text in found.items()]}


def read_template(file: Path) -> str:
    """The text of a chat template's file. Raises LlucidError if it cannot be read, or is of another kind."""
    if first_bytes(file, 1):
        refuse_stand_in(file)
    try:
        return read_file(file, LARGEST_TEMPLATE).decode()
    except UnicodeDecodeError as error:
        raise LlucidError(f"{file}: cannot be read ({error})") from error


def added_in(folder: Path, config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The tokens that a folder adds to its tokenizer, by id: the content and FLAGS of each, if given.

    They are in `tokenizer_config.json`, that is in `config`, or, in older folders, in `added_tokens.json`, where those
    with a role are special. Raises LlucidError if there is something else.
    """
    file, added, flags = folder / "tokenizer_config.json", config.get("added_tokens_decoder"), FLAGS
    try:
        if added is None:
            file, names, flags = folder / "added_tokens.json", role_names(config), FLAGS[-1:]
            ids = optional_json(file).items()
            added = {int(number): {"content": name, "special": name in names} for name, number in ids}
        found = {
            int(number): {"content": text_of(token), **{flag: bool(token.get(flag)) for flag in flags}}
            for number, token in dict[Any, dict[str, Any]](added).items()
        }
    except LlucidError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise LlucidError(f"{file}: its added tokens are not texts and ids ({error})") from error
    if None in (token["content"] for token in found.values()):
        raise LlucidError(f"{file}: its added tokens are not texts and ids")
    return found


def end_ids(folder: Path) -> set[int]:
    """The ids that `generation_config.json` and `config.json` call the end of a text.

    transformers writes Llama 2's ids there by default, so a caller should ignore those of ordinary tokens.
    """
    ends: set[int] = set()
    for file in (folder / "generation_config.json", folder / "config.json"):
        try:
            found = optional_json(file).get("eos_token_id")
        except LlucidError:  # some published folders have a generation_config.json that is not JSON
            continue
        ends.update(number for number in (found if isinstance(found, list) else [found]) if type(number) is int)
    return ends


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Raises LlucidError as `read_json` does."""
    return read_json(path) if path.exists() else {}


def write_folder(
    folder: Path, tokenizer_json: str, config: dict[str, Any], stop_ids: frozenset[int] = frozenset()
) -> None:
    """Writes `tokenizer.json` and a `tokenizer_config.json` that tells transformers' AutoTokenizer its class.

    If other ids than EOS end a text, they are written to `generation_config.json`; an older one is replaced.
    """
    write_text_atomically(folder / "tokenizer.json", tokenizer_json)
    write_beside(folder, config, stop_ids)


def write_beside(
    folder: Path, config: dict[str, Any], stop_ids: frozenset[int], kind: str = "PreTrainedTokenizerFast"
) -> None:
    """Writes what `write_folder` writes, without `tokenizer.json`; `kind` is transformers' class."""
    # transformers' Llama classes would not obey our tokenizer.json. They pad on the left, unlike the class that does,
    # and have a BOS and an EOS unless that is denied.
    own: dict[str, Any] = {"padding_side": "left"} if "Llama" in str(config.get("tokenizer_class")) else {}
    own |= {"bos_token": None, "eos_token": None} if "Llama" in kind else {}
    config = {"clean_up_tokenization_spaces": False} | own | config | {"tokenizer_class": kind}
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    generation = folder / "generation_config.json"
    if len(stop_ids) > (name_of("eos_token", config) is not None) or generation.is_file():
        write_text_atomically(generation, json.dumps({"eos_token_id": sorted(stop_ids) or None}, indent=2) + "\n")
