"""Writing text: `generate` streams one continuation, `generate_batch` writes many at once, `predict` looks one ahead.

completions.py  text → text: `generate` and `generate_batch`
predictions.py  `predict`; toy.py shows it step by step, on an untrained model
stream.py       the engine's ids as pieces of text; stopping.py: stop strings, of which nothing is shown
batch.py        the engine: ids → ids, for requests that come and go
sampling.py     logits → logits → one token
speculation.py  several tokens for one pass, where the text repeats itself
reader.py       ids → logits, by C or by PyTorch (torch_reader.py)
pages.py        who has which pages of the cache, and shares them
screen.py       text as a terminal shows it: lines end between words
"""

from llucid.generation.batch import Batch, Event, PastContext, Reason, Request, Statistics
from llucid.generation.completions import Completion, Options, generate, generate_batch, pieces
from llucid.generation.predictions import Prediction, predict
from llucid.generation.sampling import Sampling, generator, sampling_of
from llucid.generation.speculation import Draft
from llucid.generation.stopping import StopMatcher
from llucid.generation.stream import Piece, stream
from llucid.tokenizers.prompts import prompt_ids

__all__ = [
    "Batch",
    "Completion",
    "Draft",
    "Event",
    "Options",
    "PastContext",
    "Piece",
    "Prediction",
    "Reason",
    "Request",
    "Sampling",
    "Statistics",
    "StopMatcher",
    "generate",
    "generate_batch",
    "generator",
    "pieces",
    "predict",
    "prompt_ids",
    "sampling_of",
    "stream",
]
