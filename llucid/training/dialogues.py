"""Dialogues to train on: a file of JSON, one conversation a line, as ids of which the assistant's are learned."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from llucid.chat import Session, encode_dialog, encode_learned, format_of
from llucid.checkpoints import Model
from llucid.corpora import CHUNK, Corpus
from llucid.corpora.dialogues import Dialogues, longer, open_dialogues, write_dialogues
from llucid.corpora.tokens import BPE_SAMPLE, characters_per_token
from llucid.dialogs.formats import LLAMA3, check_messages
from llucid.dialogs.loss_mask import CHAT_CONFIG
from llucid.errors import LlucidError
from llucid.files import atomic_file, cache_file
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.tokenizer_json import JsonTokenizer, train_bpe
from llucid.training.report import progress_of

Messages = list[dict[str, str]]

VALIDATED = 10
"""One line in so many validates, those at the end of the file, and at least one."""
FABLES = 32_000
"""Conversations in the file about fables."""


def open_chat(name: str) -> Corpus:
    """The conversations in the file called `name`, or those about "fables", which are made when they are first needed.

    Raises LlucidError if there is no such file.
    """
    if name == "fables":
        from llucid.corpora import fable_dialogues, fable_words, fables

        sources = [Path(str(module.__file__)).read_bytes() for module in (fable_dialogues, fable_words, fables)]
        file = cache_file(f"fables-{hashlib.sha256(b''.join(sources)).hexdigest()[:12]}.jsonl")
        if not file.is_file():
            with atomic_file(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
                out.writelines(fable_dialogues.lines(FABLES))
        return Corpus("fables", (file,))
    if not Path(name).is_file():
        raise LlucidError(f"--chat {name}: no such file; expected fables, or a file of conversations, one JSON a line")
    return Corpus(Path(name).stem, (Path(name),))


def read_chat(corpus: Corpus, split: str = "all") -> Iterator[tuple[int, Messages]]:
    """(the number of a line, its messages) of the "train" or the "validation" split, or of both.

    Raises LlucidError, naming the line, for one that is no conversation with an answer in it, and for fewer than two.
    """
    [file] = corpus.files
    with open(file, "rb") as lines:
        count = sum(1 for line in lines if line.strip())
    if count < 2:
        what = "there is no conversation" if not count else "there is one conversation"
        raise LlucidError(f"{file}: {what} in it; at least one to learn from and one to validate are needed")
    border = count - max(1, count // VALIDATED)
    wanted = {"train": range(border), "validation": range(border, count), "all": range(count)}[split]
    seen = -1
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            seen += bool(line.strip())
            if line.strip() and seen in wanted:
                try:
                    yield number, parse_line(line)
                except LlucidError as error:
                    raise LlucidError(f"{file}, line {number}: {error}") from error


def parse_line(line: bytes) -> Messages:
    """The messages of one line, up to the last answer. Raises LlucidError if it is no conversation with an answer."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LlucidError(f"not JSON ({error})") from error
    if not isinstance(told, dict) or "messages" not in told:
        raise LlucidError('expected {"messages": [{"role": …, "content": …}, …]}')
    messages = check_messages(told["messages"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise LlucidError("there is no message of the assistant, so that there is nothing to learn")
    return messages


def make_chat_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """A tokenizer that knows turns: "bpe:N", made from the conversations, or the saved one of a chat model."""
    if re.fullmatch(r"bpe:\d{1,9}", kind):
        spoken = (f"{m['role']}\n\n{m['content']}" for _, messages in read_chat(corpus, "train") for m in messages)
        return train_bpe(_clipped(spoken), int(kind[4:]), LLAMA3, CHAT_CONFIG)
    if not Path(kind).exists():
        raise LlucidError(
            f"--tokenizer {kind}: with --chat, expected bpe:N, as in bpe:1024, or the path of a chat model's tokenizer"
        )
    return taught(load_tokenizer(kind), f"--tokenizer {kind}")


def _clipped(texts: Iterator[str]) -> Iterator[str]:
    """The texts, until there are as many characters as a vocabulary is made from."""
    room = BPE_SAMPLE * CHUNK
    for text in texts:
        if room <= 0:
            break
        room -= len(text)
        yield text


def taught(tokenizer: Tokenizer, where: str) -> Tokenizer:
    """The same tokenizer, with Llama 3's template if it has no format but the tokens of that one.

    Raises LlucidError if it lacks these as well.
    """
    if format_of(tokenizer) is not None:
        return tokenizer
    if not isinstance(tokenizer, JsonTokenizer) or not all(name in tokenizer.special for name in LLAMA3):
        raise LlucidError(
            f"{where}: this tokenizer has no chat template, and not the special tokens of Llama 3's format either; "
            "take that of a chat model, or --tokenizer bpe:1024"
        )
    return JsonTokenizer(json.loads(tokenizer.json()), config=tokenizer.config | CHAT_CONFIG)


def tokenise_chat(
    corpus: Corpus, tokenizer: Tokenizer, split: str, context: int, progress: Callable[[int], None] = lambda done: None
) -> Dialogues:
    """The ids of a split, from the cache or else made and kept there; `progress` hears of the characters done.

    Raises LlucidError if nothing in it can be learned within `context` tokens.
    """
    format = format_of(tokenizer)
    told = corpus.fingerprint() + tokenizer.json() + str(format)
    key = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    file = cache_file(f"tokens/{key}.{split}.dialogues")
    if not file.is_file():

        def encoded() -> Iterator[tuple[list[int], list[bool]]]:
            for number, messages in read_chat(corpus, split):
                try:
                    yield encode_learned(messages, tokenizer, format)
                except LlucidError as error:
                    raise LlucidError(f"{corpus.files[0]}, line {number}: {error}") from error
                progress(sum(len(message["content"]) for message in messages))

        write_dialogues(encoded(), file)
    dialogues = open_dialogues(file, context)
    if not len(dialogues.kept):
        raise LlucidError(
            f"--chat {corpus.files[0]}: no conversation of its {split} split has an answer within {context} tokens; "
            "give a longer --model.context"
        )
    return dialogues


def read_chat_tokens(
    corpus: Corpus, tokenizer: Tokenizer, context: int, console: Console
) -> tuple[Dialogues, Dialogues, Messages]:
    """The ids of conversations to train on and to validate by, and how one of the latter opens."""
    with progress_of("reading", console, 2 * corpus.size()) as heard:
        training = tokenise_chat(corpus, tokenizer, "train", context, heard)
        validation = tokenise_chat(corpus, tokenizer, "validation", context, heard)
    if not characters_per_token(validation, tokenizer, context):
        raise LlucidError(f"--chat {corpus.files[0]}: all answers of its validation split, the last lines, are empty")
    if cut := longer(training, context):
        console.print(
            f"{cut:,} of {len(training.ends):,} conversations are longer than the context of {context} tokens and are "
            "cut there; for a longer one: --model.context N",
            highlight=False,
        )
    openings = (messages[: 1 + (messages[0]["role"] == "system")] for _, messages in read_chat(corpus, "validation"))
    room = context // 2
    fitting = (o for o in openings if o[-1]["role"] == "user" and len(encode_dialog(o, tokenizer)) <= room)
    return training, validation, next(fitting, [])


def answered(model: Model, opening: Messages, max_tokens: int, seed: int) -> str:
    """A question and what the model answers by now; nothing if there is no question."""
    if not opening:
        return ""
    question = opening[-1]["content"]
    system = opening[0]["content"] if len(opening) > 1 else ""
    session = Session(model, system=system, max_tokens=max_tokens, seed=seed)
    return f"› {question}\n" + "".join(session.reply(question))
