"""The devices of this machine."""

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from llucid.errors import LlucidError

if TYPE_CHECKING:
    import torch


def choose_device(name: str | None = None) -> "torch.device":
    """The device called `name`, or else the fastest one here: CUDA, then Apple's MPS, then the CPU.

    Raises LlucidError if there is no such device on this machine.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise LlucidError(f"device={name}: there is no such device on this machine ({reason})") from error


@contextmanager
def without_autocast() -> Generator[None]:
    """Inside, PyTorch computes in the dtype of the weights, even if the caller is in `torch.autocast`."""
    import torch

    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def only_cpu() -> bool:
    """Whether it is certain that this machine has no GPU; PyTorch is not imported to find out."""
    drivers = ("/proc/driver/nvidia", "/sys/module/nvidia", "/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
    return sys.platform == "linux" and not any(map(os.path.exists, drivers))
