"""Training: a corpus in, the folder of a run out. What `llucid train` does, from Python:

    from llucid.training import Settings, train

    out = train(Settings(corpus=("texts/",), tokenizer="bpe:4096", preset="micro", minutes=10))
    model = llucid.load(out)
    train(Settings(resume=True, out=str(out), minutes=20))                        # continues it
    train(Settings(base=str(out), corpus=("more/",), out="runs/more"))            # fine-tunes the model

`Settings` documents every option. `train(settings, console)` prints to a `rich.console.Console`, by default to standard
output; `Console(quiet=True)` prints nothing.

settings.py       everything that decides a run; recipes.py: values for what is left open
prepare.py        what a run needs before its first step
loop.py           the loop; logbook.py: what it writes; report.py: what it prints
step.py           one step, and the loss of a model
optimizer.py      the optimizers and the learning rate; muon.py: an optimizer of our own
backend.py        the contract with the library that computes; backend_torch.py, backend_jax.py: PyTorch and JAX
dialogues.py      conversations as ids of which the assistant's are learned
run.py            the folder of a run; curve.py: the picture in it; snapshots.py: copies of the model on the way
interrupts.py     Ctrl-C and other signals
busy.py           machines whose cores others use
"""

from typing import TYPE_CHECKING, Any

from llucid.training.settings import ModelNumbers, Settings

if TYPE_CHECKING:
    from llucid.training.loop import train

__all__ = ["ModelNumbers", "Settings", "train"]


def __getattr__(name: str) -> Any:
    """`train`. PyTorch is imported only now, after deciding how its threads wait on a busy machine."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llucid.training.busy import wait_passively_if_busy

    wait_passively_if_busy()
    from llucid.training.loop import train

    return train
