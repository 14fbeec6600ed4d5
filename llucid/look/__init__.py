"""Look inside: every value that llama.py computes, what it means, and a page that shows both.

instrument.py   llama.py's source with a call of `see` around every expression
watch.py        a recorded pass: names, changes, kept values
trace.py        the values of a pass, and what is worked out from them
changes.py      ablating, scaling, patching
heads.py        scores that find heads
answers.py      answers to the page's requests
export.py       the page as one file
server.py       the page's server, and its protocol
page/           what the browser gets
"""

from llucid.look.changes import ablate, patch, scale, zero_frequency
from llucid.look.export import export
from llucid.look.heads import HeadScores, head_scores
from llucid.look.trace import Lens, Trace, Value, trace
from llucid.look.watch import Change

__all__ = [
    "Change",
    "HeadScores",
    "Lens",
    "Trace",
    "Value",
    "ablate",
    "export",
    "head_scores",
    "patch",
    "scale",
    "trace",
    "zero_frequency",
]
