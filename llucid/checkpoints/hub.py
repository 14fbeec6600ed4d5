"""Models by the name of a Hugging Face repository."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llucid.errors import LlucidError

OURS = "runs/"
"""The folder that training writes to; never looked up on the hub."""
STORYTELLER = Path(__file__).parents[1] / "chat" / "storyteller"
"""The model that comes with llucid."""

LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""The end of the names of a split model's parts but the first, by which it is opened."""


def find(name: str | Path) -> Path:
    """The path called `name`; or, if there is none, a copy of the Hugging Face repository of that name ("org/name").

    Of a repository that holds only GGUF files, or only llama2.c's, "org/name:Q4_K_M" names one by a part of its name.
    A Path is never looked up, nor is a path whose folder exists here. "storyteller" is the model that comes with
    llucid. The address of a repository's page ("https://huggingface.co/org/name") is also its name. Raises LlucidError
    if nothing can be fetched, and for other addresses.
    """
    if name == "":  # as of an unset variable of a shell
        raise LlucidError("the name of the model is empty; give a path, or the name of a repository")
    path = Path(name)
    if str(name) == "storyteller" and not path.exists():
        return STORYTELLER
    address = r"(?:(?:https?://)?(?:huggingface|hf)\.co/|hf://)?"
    form = re.fullmatch(rf"{address}([\w-][\w.-]*/[\w-][\w.-]*?)(?:/tree/main)?/?(?::([\w./-]+))?", str(name))
    if isinstance(name, Path) or path.exists() or path.parent.exists() or name.startswith(OURS):
        return path
    if not form:
        if path.is_absolute() or re.search(r"^[.~]|\s", name):
            return path
        raise LlucidError(
            f"{name}: there is no such file or folder; a Hugging Face repository is called org/name, "
            "and one of its GGUF files org/name:Q4_K_M"
        )
    try:
        return fetch(form[1], form[2])
    except LlucidError:
        raise
    except Exception as error:  # any error of a network and its libraries
        raise LlucidError(
            f"{name}: there is no such file or folder, and no repository of that name could be fetched "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def fetch(repository: str, variant: str | None) -> Path:
    """A copy of the files that make the model."""
    from huggingface_hub import snapshot_download

    # Of subfolders only the chat templates, which end with .jinja.
    def folder(*wanted: str, ignored: Sequence[str] = ("*/*[!a]",)) -> Path:
        return Path(snapshot_download(repository, allow_patterns=[*wanted], ignore_patterns=[*ignored]))

    if variant is None:
        fetched = folder("*.json", "*.safetensors", "*.model", "*.jinja")
        if any(fetched.glob("*.safetensors")):
            return fetched
        # An older repository has its weights only in PyTorch's own form.
        for config, weights in (("config.json", "pytorch_model*.bin"), ("params.json", "consolidated.*.pth")):
            if (fetched / config).is_file():
                fetched = folder(weights)
            if any(fetched.glob(weights)):
                return fetched
    name = choose_file(repository, variant)
    more = () if name.endswith(".gguf") else ("tokenizer.*",)
    return folder(re.sub(r"-00001-of-(\d{5})", r"-*-of-\1", name), *more, ignored=()) / name


def names_in(repository: str) -> list[str]:
    """The names of the repository's files; without a network, of those that were fetched before."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list_repo_files(repository)
    except Exception:  # any error of a network and its libraries
        with suppress(Exception):
            fetched = Path(snapshot_download(repository, local_files_only=True))
            return [file.relative_to(fetched).as_posix() for file in fetched.rglob("*") if file.is_file()]
        raise


def choose_file(repository: str, variant: str | None) -> str:
    """The name of the repository's only GGUF file, or of the one of this variant; of a split one, its first part.

    A repository without GGUF and config.json may have files of llama2.c."""
    every = names_in(repository)
    # Images' projectors and matrices of importance have no weights; names of models that used one have a kind, as Q4.
    other = re.compile(r"(?i)mmproj|^(?!.*[qf]\d).*imatrix")
    files = [file for file in every if file.endswith(".gguf") and not other.search(file)]
    files = [file for file in files if not LATER_PART.search(file)]
    if not files and not {"config.json", "adapter_config.json"}.intersection(every):
        files = [file for file in every if re.search(r"(^|/)(?!tok)[^/]*\.(bin|pt)$", file)]
    named = rf"(?i)(?<![^\W_]){re.escape(variant or '')}(?!\w)"  # no letter or digit before it: F16 is not BF16
    for some in ([file for file in files if "/" not in file], files):
        chosen = [file for file in some if variant is None or re.search(named, file)]
        exact = [file for file in chosen if re.search(rf"{named}((-0.*)?\.(gguf|bin|pt))?$", file)]
        if len(exact or chosen) == 1:
            return (exact or chosen)[0]
    if not files:
        what = f"GGUF file, so leave :{variant} out" if variant else "weights that llucid opens"
        raise LlucidError(f"{repository}: this repository holds no {what}")
    example = next(("Q4_K_M" for file in files if "q4_k_m" in file.lower()), files[0])
    raise LlucidError(
        f"{repository}: name one of its files, as in {repository}:{example}; there are {', '.join(files)}"
    )
