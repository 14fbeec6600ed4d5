"""What every test has: a cache folder of its own, so that nothing on the machine is read or left behind."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LLUCID_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of reference data. Tests that need it are skipped, by name, where LLUCID_DATA is not set."""
    if "LLUCID_DATA" not in os.environ:
        pytest.skip("LLUCID_DATA does not name a folder of reference data")
    return Path(os.environ["LLUCID_DATA"])
