"""Models by the name of a Hugging Face repository."""

import re
from pathlib import Path

from llucid.errors import LlucidError

OURS = "runs/"
"""The folder that training writes to; never looked up on the hub."""
STORYTELLER = Path(__file__).parents[1] / "chat" / "storyteller"
"""The model that comes with llucid."""


def find(name: str | Path) -> Path:
    """The path called `name`; or, if there is none, a copy of the Hugging Face repository of that name ("org/name").

    Of a repository that holds only GGUF files, "org/name:Q4_K_M" names one. A Path is never looked up, nor is a
    path whose folder exists here. "storyteller" is the model that comes with llucid. Raises LlucidError if nothing can
    be fetched. The address of its page ("https://huggingface.co/org/name") is also its name.
    """
    path = Path(name)
    if str(name) == "storyteller" and not path.exists():
        return STORYTELLER
    form = (
        re.fullmatch(r"(?:https://huggingface\.co/|hf://)?([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?", name)
        if isinstance(name, str)
        else None
    )
    if path.exists() or path.parent.exists() or not form or str(name).startswith(OURS):
        return path
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

    def folder(*wanted: str) -> Path:
        return Path(snapshot_download(repository, allow_patterns=[*wanted], ignore_patterns=["*/*"]))

    if variant is None:
        fetched = folder("*.json", "*.safetensors", "*.model", "*.jinja")
        if any(fetched.glob("*.safetensors")):
            return fetched
        if (fetched / "config.json").is_file():  # an older repository has its weights only in PyTorch's own form
            fetched = folder("pytorch_model*.bin")
        if any(fetched.glob("pytorch_model*.bin")):
            return fetched
    name = choose_gguf(repository, variant)
    return folder(re.sub(r"-00001-of-(\d{5})", r"-*-of-\1", name)) / name


def choose_gguf(repository: str, variant: str | None) -> str:
    """The name of the repository's only GGUF file, or of the one of this variant; of a split one, its first part."""
    from huggingface_hub import list_repo_files

    files = [file for file in list_repo_files(repository) if file.endswith(".gguf") and "/" not in file]
    files = [file for file in files if not re.search(r"-(?!00001)\d{5}-of-", file)]
    chosen = [file for file in files if variant is None or variant.lower() in file.lower()]
    exact = [file for file in chosen if re.search(rf"[.-]{re.escape(variant or '')}(\.gguf|-0)", file, re.IGNORECASE)]
    if len(exact or chosen) == 1:
        return (exact or chosen)[0]
    if not files:
        raise LlucidError(f"{repository}: this repository holds no weights that llucid opens")
    names = ", ".join(files)
    raise LlucidError(f"{repository}: name one of its GGUF files, as in {repository}:Q4_K_M; there are {names}")
