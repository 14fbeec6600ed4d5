"""Writing text: `generate` streams one continuation, `generate_batch` writes many at once, `predict` looks one ahead.

completions.py  text → text: `generate` and `generate_batch`
predictions.py  `predict`; toy.py shows it step by step, on an untrained model
sampling.py     logits → logits → one token
decode.py       the engine: ids → ids, with the cache, for rows of unequal length
reading.py      ids → logits, for the engine: by C alone where that is soonest; reading_torch.py: by PyTorch
stopping.py     stop strings, of which nothing leaks
stream.py       the engine's ids as pieces of text
speculation.py  several tokens for one pass, where the text repeats itself
prompts.py      text → the ids that the model begins with
screen.py       text as a terminal shows it: lines end between words
"""

from llucid.generation.completions import Completion, generate, generate_batch
from llucid.generation.decode import PastContext, Reason, Statistics
from llucid.generation.predictions import Prediction, predict
from llucid.generation.reading import Context
from llucid.generation.sampling import Sampling, generator
from llucid.generation.stopping import StopMatcher
from llucid.generation.stream import Piece, stream
from llucid.tokenizers.prompts import prompt_ids

__all__ = [
    "Completion",
    "Context",
    "PastContext",
    "Piece",
    "Prediction",
    "Reason",
    "Sampling",
    "Statistics",
    "StopMatcher",
    "generate",
    "generate_batch",
    "generator",
    "predict",
    "prompt_ids",
    "stream",
]
