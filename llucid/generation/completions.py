"""Text from text: one continuation as it is written, or many at once."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypedDict, Unpack

from llucid.errors import LlucidError, check_number
from llucid.generation.batch import Batch, PastContext, Reason, Request, Statistics
from llucid.generation.sampling import Sampling, generator, sampling_of
from llucid.generation.speculation import Draft
from llucid.generation.stream import Piece, stream
from llucid.model import Model
from llucid.tokenizers.prompts import prompt_ids


class Options(TypedDict, total=False):
    """The options of `generate` and `generate_batch`, all optional.

    As in transformers, settings that are not given are the model's own where its `generation_config.json` has some
    (`Model.sampling`): repetition_penalty and, if it says `do_sample`, those from temperature to min_p. Else they are
    the defaults below.
    """

    max_tokens: int
    """New tokens at most: 256."""
    temperature: float
    """0.8; 0 always takes the likeliest token. This and the next seven are `Sampling`'s."""
    top_k: int | None
    top_p: float | None
    """0.95."""
    min_p: float | None
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]
    seed: int | None
    """The same seed gives the same text on the same machine, called in the same way; None takes a new one."""
    stop: Sequence[str]
    """Strings that end the text; nothing of them is shown."""
    past_context: PastContext
    """When the context is full, "slide" (the default) forgets the oldest half and goes on; "stop" ends the text."""
    speculate: bool
    """Guesses repetitions of earlier text, which is faster where the guesses are right. The text stays the same (where
    only PyTorch computes: in float32; in bfloat16, several tokens at once are rounded differently)."""
    memory: int | float | None
    """The most bytes that keys and values may take: half of the machine's memory. Texts that do not fit wait."""
    statistics: Statistics
    """Filled in while the text is written."""


class Completion(NamedTuple):
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    """The continuation, without the prompt."""
    tokens: tuple[int, ...]
    """The ids that were written; the one that ended it is among them."""
    reason: Reason
    slid: bool
    """Whether it outgrew the context, so that the model no longer saw its beginning."""
    logprobs: tuple[float, ...] = ()
    """The natural logarithm of each token's probability, before temperature and filters."""


def generate(model: Model, prompt: str = "", **options: Unpack[Options]) -> Iterator[str]:
    """The continuation of `prompt`, piece by piece: whole characters, and nothing of a `stop` string.

    An empty prompt begins at BOS, or at a line break where the model has no BOS. Raises LlucidError, at the call, for
    invalid options, a prompt that cannot be encoded, or one longer than the context.
    """
    return (piece.text for piece in pieces(model, [prompt], **options) if piece.text)


def generate_batch(
    model: Model,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    texts: list[str] | None = None,
    **options: Unpack[Options],
) -> list[Completion]:
    """`samples` continuations of each prompt, all in one batch: prompt by prompt, in the order given.

    The first of a prompt is what `generate` writes with the same seed, whatever else is in the batch, in float32 (what
    is narrower is rounded differently in a batch); its others, and repeated prompts, have random numbers of their own.
    `texts` is filled in as they are written, for a caller who is interrupted. Raises LlucidError as `generate` does.
    """
    check_number("num", samples, whole=True)
    if not 1 <= samples <= 100_000:
        raise LlucidError(f"num={samples}: must be from 1 to 100,000")
    if isinstance(prompts, str):
        raise LlucidError("prompts: expected a list of texts, found one text")
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    texts = [] if texts is None else texts
    texts[:] = [""] * len(prompts)
    written: list[list[Piece]] = [[] for _ in prompts]
    for piece in pieces(model, prompts, **options):
        texts[piece.row] += piece.text
        written[piece.row].append(piece)
    return [
        Completion(
            prompt,
            text,
            tuple(piece.token for piece in row),
            row[-1].reason or "length",
            any(piece.slid for piece in row),
            tuple(piece.logprob for piece in row),
        )
        for prompt, text, row in zip(prompts, texts, written, strict=True)
    ]


def pieces(model: Model, prompts: Sequence[str], **options: Unpack[Options]) -> Iterator[Piece]:
    """What each new token adds to the continuations of the prompts, all of them at once.

    Raises LlucidError as `generate` does, and TypeError for an unknown option.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"unknown option {name!r}; expected one of {', '.join(Options.__annotations__)}")
    given: dict[str, Any] = {key.name: options[key.name] for key in fields(Sampling) if key.name in options}
    if "logit_bias" in options:
        if not isinstance(options["logit_bias"], Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LlucidError(f"logit_bias={options['logit_bias']!r}: expected a dict of ids and numbers")
        given["logit_bias"] = tuple(options["logit_bias"].items())
    sampling = sampling_of(model, **given)
    seed = options.get("seed")
    if seed is None:
        seed = secrets.randbits(63)
    check_number("seed", seed, whole=True)
    if seed < 0:
        raise LlucidError(f"seed={seed}: must be at least 0")
    requests: list[Request] = []
    before: Counter[str] = Counter()
    for prompt in prompts:
        requests.append(
            Request(
                prompt_ids(model.text(), prompt),
                sampling,
                generator(seed, stream=before[prompt]),
                stops=lambda token: False,
                max_tokens=options.get("max_tokens", 256),
                past_context=options.get("past_context", "slide"),
                draft=Draft() if options.get("speculate") else None,
            )
        )
        before[prompt] += 1
    batch = Batch(model, options.get("memory"), options.get("statistics"))
    return stream(batch, requests, model.text(), options.get("stop", ()))
