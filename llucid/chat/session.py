"""A conversation with a model.

A Conversation is a value: what was said. A Session has one, and an engine (a `Batch`): before each answer it makes ids
of the whole conversation, always by `encode_dialog`, and the engine reads only what it has not read before.
"""

import json
import secrets
from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llucid.dialogs.formats import check_dialog, check_objects, encode_dialog, ending_turns, known_format
from llucid.errors import LlucidError, prefix_errors
from llucid.files import read_json, write_text_atomically
from llucid.generation import Batch, Piece, Reason, Request, Sampling, Statistics, generator, sampling_of, stream
from llucid.model import Model
from llucid.tokenizers import StreamingDecoder
from llucid.tokenizers.text import replace_surrogates

Message = dict[str, str]


class Conversation(NamedTuple):
    """Messages so far: they begin with a question and end with an answer."""

    system: str = ""
    """Instructions for the model; empty for none."""
    messages: tuple[Message, ...] = ()
    """`{"role": "user", "content": …}` and the assistant's, in turns."""
    forgotten: int = 0
    """How many of the first messages have left the model's context; they are kept here."""
    tools: list[dict[str, Any]] | None = None
    """What the model may call, for the chat template."""

    def dialog(self) -> list[Message]:
        """The messages in the model's context, the system's first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages[self.forgotten :]]

    def shorter(self) -> "list[Conversation]":
        """What is left if the oldest turns are forgotten: one of them, two and so on, up to the last question."""
        later = range(self.forgotten + 1, len(self.messages))
        return [self._replace(forgotten=at) for at in later if self.messages[at]["role"] == "user"]

    def said(self, role: str, content: str) -> "Conversation":
        """With one more message."""
        return self._replace(messages=(*self.messages, {"role": role, "content": content}))

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all: `{"messages": […]}`, the system's message first, perhaps `tools`."""
        everything = {"messages": self._replace(forgotten=0).dialog()} | ({"tools": self.tools} if self.tools else {})
        write_text_atomically(Path(path), json.dumps(everything, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Conversation":
        """The conversation in a JSON file. Raises LlucidError if the file holds anything else."""
        with prefix_errors(path):
            content = read_json(Path(path))
            messages = content.get("messages")
            if not isinstance(messages, list):
                raise LlucidError("expected a list under 'messages'")
            dialog = check_dialog([*messages, {"role": "user", "content": ""}])[:-1]
            tools = check_objects("tools", content.get("tools") or [])
        if dialog and dialog[-1]["role"] not in ("system", "assistant"):
            raise LlucidError(f"{path}: the last message is a question; a conversation ends with its answer")
        system = dialog.pop(0)["content"] if dialog and dialog[0]["role"] == "system" else ""
        return cls(system, tuple(dialog), tools=tools or None)


class Session:
    """A conversation with a model.

    `format` is that of `encode_dialog`; None takes the model's own. `sampling`: None takes the model's own
    (`sampling_of`). `template_values` are more arguments of `encode_dialog`: tools, documents, enable_thinking. Raises
    NotAChatModel if the model has no format, and LlucidError for an unknown format or for values that it has no place
    for.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str = "",
        format: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 1024,
        seed: int | None = None,
        template_values: Mapping[str, Any] | None = None,
    ) -> None:
        self.template_values = dict(template_values or {})
        self.model, self.tokenizer, self.given_format = model, model.text(), format or model.chat_format
        self.resume(Conversation(system))
        self.sampling = sampling or sampling_of(model)
        self.max_tokens = max_tokens
        self.reseed(seed)
        self.used: int
        """Tokens of the context that are taken: none before a conversation has been read."""
        self.statistics = Statistics()
        self.reason: Reason | None = None
        self.batch = Batch(self.model)

    def reseed(self, seed: int | None) -> None:
        """Seeds the random numbers of the next answers; None takes a new seed."""
        if seed is not None and seed < 0:
            raise LlucidError(f"seed={seed}: must be at least 0")
        self.seed = seed
        self.generator = generator(secrets.randbits(63) if seed is None else seed)

    def reply(self, question: str) -> Generator[str]:
        """The answer to `question`, piece by piece; when it ends, question and answer are in the conversation.

        If it is closed early, the text so far is the answer; if there is none, the question is dropped. When the
        context is full, the oldest turns are forgotten and the answer goes on. `statistics` and `reason` describe it.
        Raises LlucidError, and leaves the conversation as it was, for a question that does not fit into the context.
        """
        return self._answer(self.conversation, replace_surrogates(question), self.conversation)

    def retry(self) -> Generator[str]:
        """Another answer to the last question, which replaces the first. Raises LlucidError if there is no question."""
        messages = self.conversation.messages
        asked = [number for number, message in enumerate(messages) if message["role"] == "user"]
        if not asked:
            raise LlucidError("there is no question yet to answer again")
        before = self.conversation._replace(messages=messages[: asked[-1]])
        return self._answer(before, messages[asked[-1]]["content"], self.conversation)

    def reset(self) -> None:
        """Starts a new conversation with the same system text and tools."""
        self.conversation, self.used = self.conversation._replace(messages=(), forgotten=0), 0

    def resume(self, conversation: Conversation) -> None:
        """Continues a conversation, with the session's tools if it has none.

        Raises LlucidError if the format has no place for them.
        """
        conversation = conversation._replace(tools=conversation.tools or self.template_values.get("tools"))
        format = known_format(self.given_format, self.tokenizer, bool(conversation.tools))
        if values := self._values(conversation):  # refused now rather than after the next question
            encode_dialog([{"role": "user", "content": ""}], self.tokenizer, format, **values)
        self.conversation, self.format, self.used = conversation, format, 0
        self.model = self.model._replace(tokenizer=ending_turns(self.tokenizer, format))

    def _values(self, conversation: Conversation) -> dict[str, Any]:
        return self.template_values | ({"tools": conversation.tools} if conversation.tools else {})

    def _answer(self, before: Conversation, question: str, otherwise: Conversation) -> Generator[str]:
        size = self.model.config.context
        now, prompt = self._fit(before.said("user", question), [])
        if len(prompt) > size:
            raise LlucidError(
                f"the question has {len(prompt)} tokens together with the system's text, but the model's context is "
                f"{size}; ask something shorter, or take a model with a longer context"
            )
        self.statistics, self.reason = Statistics(), None
        answer, written = "", list[int]()
        tokenizer = self.model.text()
        decoder = StreamingDecoder(tokenizer, prompt)  # of the whole answer: a context may end within a character
        try:
            while len(prompt) <= size:
                before_this = len(written)
                for piece in self._stream(prompt, self.max_tokens - len(written)):
                    self.reason = piece.reason
                    written.append(piece.token)
                    self.used = len(prompt) + len(written) - before_this - 1  # the newest is not read yet
                    text = "" if piece.token in tokenizer.stop_ids else decoder.push(piece.token)
                    # White space before the first word is not part of a message: Llama 2 always begins with a space.
                    if text := text if answer or self.format == "plain" else text.lstrip():
                        answer += text
                        yield text
                if self.reason != "context":
                    break
                now, prompt = self._fit(now, written)
            if rest := decoder.finish():
                answer += rest
                yield rest
        finally:
            self.conversation = now.said("assistant", answer) if answer or self.reason else otherwise

    def _fit(self, conversation: Conversation, written: list[int]) -> tuple[Conversation, list[int]]:
        """(the conversation without the turns that do not fit, its ids followed by `written`).

        A full context forgets a quarter of itself at once, so that it is not read again for every new token.
        """

        def ids(kept: Conversation) -> list[int]:
            return [*encode_dialog(kept.dialog(), self.model.text(), self.format, **self._values(kept)), *written]

        context, shorter = self.model.config.context, conversation.shorter()
        if len(whole := ids(conversation)) < context or not shorter:
            return conversation, whole
        # By bisection, since a long conversation takes time.
        at = bisect_left(shorter, True, hi=len(shorter) - 1, key=lambda kept: len(ids(kept)) <= context * 3 // 4)
        return shorter[at], ids(shorter[at])

    def _stream(self, prompt: list[int], max_tokens: int) -> Iterator[Piece]:
        self.batch.statistics = self.statistics
        request = Request(prompt, self.sampling, self.generator, lambda token: False, max_tokens, "stop")
        return stream(self.batch, [request], self.model.text())
