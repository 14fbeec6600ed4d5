"""What every test has: a cache folder and a terminal of its own, so that nothing on the machine is read or left."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import torch._dynamo  # noqa: F401

# These two large packages are imported before any of llucid's: what is first imported by a module whose types jaxtyping
# checks is not found in Python's cache of compiled modules, and ten seconds go to compiling it.


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LLUCID_CACHE"] = str(tmp_path_factory.mktemp("cache"))


# What programs print on a terminal depends on these, which each user sets otherwise.
os.environ["TERM"] = "xterm-256color"
for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Where tests are run in the background, Ctrl-C is ignored, and so it would be by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of reference data. Tests that need it are skipped, by name, where LLUCID_DATA is not set."""
    if "LLUCID_DATA" not in os.environ:
        pytest.skip("LLUCID_DATA does not name a folder of reference data")
    return Path(os.environ["LLUCID_DATA"])


@pytest.fixture
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """For JAX on arrays so small that compiling well takes longer than computing, but where it is `compiled_well`."""

    jax.config.update("jax_disable_most_optimizations", "compiled_well" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def compiled_well() -> None:
    """For JAX in hundreds of steps."""


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX keeps float64 where it is given that."""

    with jax.enable_x64(True):
        yield
