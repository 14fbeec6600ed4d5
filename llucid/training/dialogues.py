"""Conversations to train on: as token ids of which the assistant's are learned."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress
from pathlib import Path

from llucid.corpora import Corpus
from llucid.corpora.conversations import Conversation, read_conversations
from llucid.corpora.dialogues import Dialogues, longer, open_dialogues, write_dialogues
from llucid.corpora.tokens import BPE_SAMPLE, characters_per_token, first_characters
from llucid.dialogs import encode_dialog, encode_learned, format_of
from llucid.dialogs.formats import LLAMA3, ending_turns, known_format, with_template
from llucid.dialogs.loss_mask import CHAT_CONFIG
from llucid.dialogs.templates import SlowTemplate, values_of
from llucid.errors import LlucidError, one_line
from llucid.files import cached
from llucid.generation import Batch, Request, Sampling, generator, stream
from llucid.model import Model
from llucid.tokenizers import Tokenizer, load_tokenizer
from llucid.tokenizers.byte_pairs import train_bpe
from llucid.tokenizers.comparison import identity
from llucid.tokenizers.tokenizer_json import JsonTokenizer
from llucid.training.report import Report, progress_of

PATIENCE = 100
"""Conversations after which reading ends if none could be learned, since the chat template probably refuses all."""


def make_chat_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """A tokenizer with a chat format: "bpe:N", learned from the conversations, or the path of a chat model's."""
    if re.fullmatch(r"bpe:\d{1,9}", kind):
        texts = (
            f"{message['role']}\n\n{message['content']}"
            for _, conversation in read_conversations(corpus, "train")
            for message in conversation.messages
        )
        return train_bpe(first_characters(texts, BPE_SAMPLE), int(kind[4:]), LLAMA3, CHAT_CONFIG)
    if not Path(kind).exists():
        raise LlucidError(
            f"tokenizer={kind}: with chat=, expected bpe:N, as in bpe:1024, or the path of a chat model's tokenizer"
        )
    return with_llama3_template(
        load_tokenizer(kind), f"tokenizer={kind}", "take that of a chat model, or tokenizer=bpe:1024"
    )


def with_llama3_template(tokenizer: Tokenizer, where: str, advice: str) -> Tokenizer:
    """`tokenizer` with a chat template: that of its chat format, or Llama 3's if it has Llama 3's special tokens.

    Raises LlucidError, with `advice`, if it has neither.
    """
    if format_of(tokenizer) is not None:
        return with_template(tokenizer)
    if not isinstance(tokenizer, JsonTokenizer) or not all(name in tokenizer.special for name in LLAMA3):
        raise LlucidError(
            f"{where}: this tokenizer has no chat template, nor the special tokens of Llama 3's format; {advice}"
        )
    return JsonTokenizer(json.loads(tokenizer.json()), config=tokenizer.config | CHAT_CONFIG)


def tokenise_chat(
    corpus: Corpus, tokenizer: Tokenizer, split: str, context: int, progress: Callable[[int], None] = lambda done: None
) -> Dialogues:
    """The ids of a split, read from the cache or else made and kept there.

    `progress` is called with the number of characters just done. A conversation that cannot be learned has no ids.
    Raises LlucidError if that is so for all, or for the first PATIENCE, or nothing is learned within `context` tokens.
    """
    formats = {tools: known_format(None, tokenizer, tools) for tools in (False, True)}
    values = (values_of(tokenizer), tokenizer.bos, tokenizer.eos, sorted(tokenizer.stop_ids))
    content = f"5 {corpus.fingerprint}{identity(tokenizer)}{formats}{values}"
    key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def encoded() -> Iterator[tuple[list[int], list[bool]]]:
        first, found = "", False
        for number, (where, conversation) in enumerate(read_conversations(corpus, split), 1):
            ids, learned, fault = _encoded(conversation, tokenizer)
            first, found = first or f"{where}: {fault}", found or not fault
            if number == PATIENCE and not found:
                found = f"none of its first {number} conversations can be learned; {first}"
                raise LlucidError(f"chat={corpus.files[0]}: {found}")
            yield ids, learned
            progress(sum(len(message["content"]) for message in conversation.messages))
        corpus.refuse_changed()

    file = cached(f"tokens/{key}.{split}.dialogues", lambda file: write_dialogues(encoded(), file))
    dialogues = open_dialogues(file, context)
    if not len(dialogues.kept):
        first = _first_left_out(dialogues, corpus, tokenizer, split, context)
        raise LlucidError(f"chat={corpus.files[0]}: no conversation of its {split} split can be learned; {first}")
    return dialogues


def _encoded(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[bool], str]:
    """(the ids of a conversation, which of them are learned, why it cannot be learned: then there are no ids)."""
    if conversation.fault:
        return [], [], conversation.fault
    try:
        ids, answers = encode_learned(conversation.messages, tokenizer, tools=conversation.tools)
        return ids, _learned(answers, conversation), ""
    except SlowTemplate:
        raise
    except LlucidError as error:
        begun = "it begins with an answer; " if conversation.messages[0]["role"] == "assistant" else ""
        return [], [], begun + one_line(error)


def _first_left_out(dialogues: Dialogues, corpus: Corpus, tokenizer: Tokenizer, split: str, context: int) -> str:
    """Where the first conversation is that is not kept, and why it is not."""
    kept = set(dialogues.kept.tolist())
    for number, (where, conversation) in enumerate(read_conversations(corpus, split)):
        if number not in kept:
            _, learned, fault = _encoded(conversation, tokenizer)
            if not fault and not any(learned):
                fault = "none of its answers is to be learned"
            fault = fault or f"it has no answer to learn within the context of {context} tokens (model.context)"
            return f"{where}: {fault}"
    corpus.refuse_changed()
    raise AssertionError("all conversations are kept")


def _learned(answers: Sequence[bool], conversation: Conversation) -> list[bool]:
    """Which ids are learned, from which are the assistant's: not those of its messages that are not to be learned."""
    pairs = zip(conversation.messages, conversation.learned, strict=True)
    wanted = [learned for message, learned in pairs if message["role"] == "assistant"]
    if all(wanted):
        return list(answers)
    flags, number = list[bool](), -1
    for before, answer in zip([False, *answers], answers, strict=False):
        number += answer and not before
        flags.append(answer and wanted[min(number, len(wanted) - 1)])
    if number + 1 != len(wanted):
        raise LlucidError("weight 0: the chat format does not separate this answer from the next one")
    return flags


def read_chat_tokens(
    corpus: Corpus, tokenizer: Tokenizer, context: int, report: Report
) -> tuple[Dialogues, Dialogues, Conversation]:
    """The ids of conversations to train on and to validate on, and how one of the latter opens."""
    with progress_of("reading", report.console, 2 * corpus.size()) as advance:
        training = tokenise_chat(corpus, tokenizer, "train", context, advance)
        validation = tokenise_chat(corpus, tokenizer, "validation", context, advance)
    parts = {"train": training, "validation": validation}
    for split, part in parts.items():
        if not characters_per_token(part, tokenizer, context):
            raise LlucidError(f"chat={corpus.files[0]}: all answers of its {split} split are empty")
    total = len(training.ends) + len(validation.ends)
    kept = len(training.kept) + len(validation.kept)
    if kept < total:
        split = next(split for split, part in parts.items() if len(part.kept) < len(part.ends))
        first = _first_left_out(parts[split], corpus, tokenizer, split, context)
        report.say(f"{total - kept:,} of {total:,} conversations are left out; the first is {first}")
    if cut := sum(longer(part, context) for part in parts.values()):
        report.say(f"{cut:,} of {total:,} conversations are longer than the context of {context} tokens and are cut")
    learned = set(validation.kept.tolist())
    found = (one for number, (_, one) in enumerate(read_conversations(corpus, "validation")) if number in learned)
    if (first := next(found, None)) is None:
        raise corpus.changed()
    ids, own, _ = _encoded(first, tokenizer)
    ends = ending_turns(tokenizer, known_format(None, tokenizer, bool(first.tools))).stop_ids
    if ends.isdisjoint(compress(ids, own)):
        report.say("the chat template ends an answer with no token that stops the model: it will not learn to stop")
    openings = (
        one._replace(messages=one.messages[: 1 + (one.messages[0]["role"] == "system")])
        for one in chain([first], found)
    )
    fitting = (
        one
        for one in openings
        if one.messages[-1]["role"] == "user"
        and len(encode_dialog(one.messages, tokenizer, tools=one.tools)) <= context // 2
    )
    return training, validation, next(fitting, Conversation([], ()))


def answer(model: Model, opening: Conversation, max_tokens: int, seed: int) -> str:
    """A question and the model's answer; empty if there is no question."""
    if not opening.messages:
        return ""
    format = known_format(model.chat_format, model.text(), bool(opening.tools))
    tokenizer = ending_turns(model.text(), format)
    ids = encode_dialog(opening.messages, tokenizer, format, tools=opening.tools)
    request = Request(ids, Sampling(), generator(seed), lambda token: False, max_tokens, "stop")
    pieces = stream(Batch(model), [request], tokenizer)
    return f"› {opening.messages[-1]['content']}\n" + "".join(piece.text for piece in pieces).lstrip()
