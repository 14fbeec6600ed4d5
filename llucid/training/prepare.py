"""What a run needs before its first step: corpus, tokenizer, tokens, weights, and the run's folder."""

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llucid.checkpoints import choose_device, huggingface, load, read_tokenizer
from llucid.config import Config
from llucid.corpora import BUILT_IN, Corpus, open_corpus
from llucid.corpora.conversations import Conversation, open_conversations
from llucid.corpora.dialogues import Dialogues
from llucid.corpora.tokens import Tokens, characters_per_token, make_tokenizer, tokenise
from llucid.errors import LlucidError
from llucid.files import OccupiedError
from llucid.model import Model
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.training import run
from llucid.training.backend import Backend
from llucid.training.backend_torch import TorchBackend
from llucid.training.dialogues import make_chat_tokenizer, read_chat_tokens, with_llama3_template
from llucid.training.recipes import resolve
from llucid.training.report import Report, progress_of
from llucid.training.run import Progress
from llucid.training.settings import Settings, read_toml
from llucid.weights import initialise, tree_map


class Task(NamedTuple):
    """What is trained, on what, and by what."""

    out: Path
    settings: Settings
    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    training: Tokens | Dialogues
    validation: Tokens | Dialogues
    backend: Backend
    opening: Conversation
    """How a conversation of the validation split opens, for the model to answer; empty for text."""
    sampling: Mapping[str, Any]
    """The settings of the base for choosing tokens, which its snapshots keep."""


def prepare(settings: Settings, report: Report) -> tuple[Task, Any, Progress]:
    """The task, the backend's state and the progress: of a new run, which it creates, or of one that is resumed."""
    if settings.resume:
        return resume(settings, report)
    device = device_of(settings)
    settings = resolve(absolute(settings), device)
    if settings.out:
        run.refuse_occupied(Path(settings.out))
    corpus = open_text(settings, report)
    if settings.base:
        base = load(settings.base, device="cpu", tokenizer=settings.tokenizer)
        tokenizer, config, sampling = base.text(), settings.rebased(base.config), base.sampling
        if settings.chat:
            tokenizer = with_llama3_template(
                tokenizer,
                f"base={settings.base}",
                "take a chat model, or one trained on text with the tokenizer of a chat model (tokenizer=PATH)",
            )
        # Cloned, because those of a file are mapped from it.
        weights = tree_map(lambda leaf: leaf.float().clone(), base.weights)
    else:
        with report.console.status("making a vocabulary"):
            make = make_chat_tokenizer if settings.chat else make_tokenizer
            tokenizer = make(str(settings.tokenizer), corpus)
        config = settings.config(str(settings.preset), tokenizer.vocab_size)
        weights, sampling = None, {}
    backend = open_backend(config, settings, device)
    training, validation, opening = read(settings, corpus, tokenizer, config.context, report)
    weights = initialise(config, settings.seed) if weights is None else weights
    model, state = Model(config, weights, tokenizer, sampling=sampling), backend.start(weights)

    def save_state(folder: Path) -> None:
        backend.save(folder, state, Progress())

    while True:
        out = Path(settings.out) if settings.out else run.free_name(corpus.name)
        try:
            tokenizer = run.create(out, model, settings, corpus, save_state)
            break
        except OccupiedError:
            if settings.out:
                raise  # else another process has just taken this name
    task = Task(out, settings, config, corpus, tokenizer, training, validation, backend, opening, sampling)
    return task, state, Progress()


def resume(settings: Settings, report: Report) -> tuple[Task, Any, Progress]:
    """The run in the folder `settings.out`, with what else is set there instead of what it began with."""
    out = Path(str(settings.out))
    if not (out / "train.toml").is_file():
        raise LlucidError(f"out={out}: there is no run here to continue; leave out resume= to begin one")
    run.refuse_links(out)
    settings = absolute(settings.continuing(read_toml(out / "train.toml")))
    device = device_of(settings)
    settings = resolve(settings, device)
    corpus = open_text(settings, report)
    options = shlex.join(["--chat", settings.chat] if settings.chat else ["--corpus", *(settings.corpus or ())])
    run.refuse_changed(out, corpus, options)
    try:
        written = huggingface.read_config(out)
        tokenizer = read_tokenizer(out, huggingface, written)
    except LlucidError:
        if settings.base:
            raise
        written, tokenizer = None, load_tokenizer(out)
    if settings.base and written:
        config = settings.rebased(written)
    else:  # a damaged config.json is written anew, with as many ids as the tokenizer has
        config = settings.config(str(settings.preset), tokenizer.vocab_size)
    backend = open_backend(config, settings, device)
    training, validation, opening = read(settings, corpus, tokenizer, config.context, report)
    state, progress = backend.load(out / "state")
    if settings.steps is not None and settings.steps < progress.step:
        raise LlucidError(f"steps={settings.steps}: the run in {out} has done {progress.step} already; give more")
    if not settings.base:
        huggingface.write_config(out, config, tokenizer, "float32")
    sampling = huggingface.read_sampling(out)
    task = Task(out, settings, config, corpus, tokenizer, training, validation, backend, opening, sampling)
    return task, state, progress


def absolute(settings: Settings) -> Settings:
    """The same with absolute paths, so that the run can be resumed from any working directory."""

    def path(name: str | None) -> str | None:
        return os.path.abspath(name) if name and Path(name).exists() else name

    corpus = settings.corpus
    if corpus and corpus not in [(name,) for name in BUILT_IN]:
        corpus = tuple(path(name) or name for name in corpus)
    chat = settings.chat if settings.chat in BUILT_IN else path(settings.chat)
    tokenizer = settings.tokenizer if settings.learns_tokenizer else path(settings.tokenizer)
    return dataclasses.replace(settings, corpus=corpus, chat=chat, base=path(settings.base), tokenizer=tokenizer)


def device_of(settings: Settings) -> torch.device:
    """The device of the run: the one given, else the fastest that its library finds."""
    if settings.backend == "jax" and settings.device is None:
        from llucid.training.backend_jax import fastest_device

        return fastest_device()
    return choose_device(settings.device)


def open_backend(config: Config, settings: Settings, device: torch.device) -> Backend:
    """The backend of `settings`. Raises LlucidError if it does not support them, or if a library is not installed."""
    run.refuse_missing_libraries(settings)
    if settings.backend == "jax":
        from llucid.training.backend_jax import JaxBackend

        return JaxBackend(config, settings, device)
    return TorchBackend(config, settings, device)


def open_text(settings: Settings, report: Report) -> Corpus:
    """The corpus; prints which files of a folder are not text."""
    if settings.chat:
        return open_conversations(settings.chat)
    with report.console.status("looking through the text"):
        corpus = open_corpus(settings.corpus or (), settings.column)
    if corpus.skipped:
        more = f" and {len(corpus.skipped) - 3} more" if len(corpus.skipped) > 3 else ""
        report.say(f"skipped, since it is not UTF-8 text: {', '.join(map(str, corpus.skipped[:3]))}{more}")
    return corpus


def read(
    settings: Settings, corpus: Corpus, tokenizer: Tokenizer, context: int, report: Report
) -> tuple[Tokens | Dialogues, Tokens | Dialogues, Conversation]:
    """The token ids to train on and to validate on, and how a conversation opens."""
    if settings.chat:
        found = read_chat_tokens(corpus, tokenizer, context, report)
        corpus.refuse_changed()
        return found
    with progress_of("reading", report.console, 2 * corpus.size()) as advance:
        training = tokenise(corpus, tokenizer, "train", advance)
        validation = tokenise(corpus, tokenizer, "validation", advance)
    corpus.refuse_changed()
    for split, tokens in (("train", training), ("validation", validation)):
        if tokens.length <= context + 1:
            raise LlucidError(
                f"corpus={' '.join(settings.corpus or ())}: its {split} split has {tokens.length} tokens and one "
                f"context needs {context + 2}; give more text, or a smaller model.context="
            )
        if not characters_per_token(tokens, tokenizer, context):
            raise LlucidError(
                f"corpus={' '.join(settings.corpus or ())}: its {split} split has no characters that this tokenizer "
                f"has tokens for; give another text, or another tokenizer="
            )
    if training.bos is not None and training.begin_documents(context):
        # After a BOS before any other place, a text without a prompt would begin in the middle of a document.
        training, validation = training._replace(bos=None), validation._replace(bos=None)
    return training, validation, Conversation([], ())
