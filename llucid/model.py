"""A model in memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llucid.config import Config
from llucid.errors import NoTokenizer
from llucid.tokenizers import Tokenizer
from llucid.weights import Weights, parameter_count


class Model(NamedTuple):
    """What `load` returns."""

    config: Config
    weights: Weights
    tokenizer: Tokenizer | None
    """None for a checkpoint without one."""
    chat_format: str | None = None
    """The format of its dialogues: the chat template that it came with, or a name; None for what
    `chat.format_of` finds in its tokenizer."""
    sampling: Mapping[str, Any] = {}
    """How its makers choose tokens: settings of `generation.Sampling` from its `generation_config.json`."""

    def __repr__(self) -> str:
        return f"<Model of {parameter_count(self.config):,} parameters, {self.weights.dtype}, {self.weights.device}>"

    def text(self) -> Tokenizer:
        """The tokenizer, for what needs text. Raises NoTokenizer, a LlucidError, if there is none."""
        if self.tokenizer is None:
            raise NoTokenizer("this model has no tokenizer; give the path of one, as in tokenizer=PATH")
        return self.tokenizer
