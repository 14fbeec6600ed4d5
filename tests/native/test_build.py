"""Building llama.c on unusual systems."""

import errno
from pathlib import Path

import pytest

from llucid.errors import LlucidError
from llucid.native import build
from llucid.native.step import decode_step
from llucid.presets import PRESETS
from llucid.weights import initialise


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EWOULDBLOCK])
def test_a_lock_that_cannot_be_had(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system has none, or a process that builds has been stopped."""

    def refused(*_: object) -> None:
        raise OSError(error, "the lock cannot be had")

    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", refused)
    monkeypatch.setattr(build, "PATIENCE", 0.1)
    monkeypatch.setenv("CC", """sh -c 'while [ "$1" != -o ]; do shift; done; echo built > "$2"' cc""")
    assert build.built().read_text() == "built\n"


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_C", "no")
    with pytest.raises(LlucidError, match="LLUCID_C=no: expected 0, which switches C off, or 1"):
        decode_step(initialise(PRESETS["nano"].config, 0), PRESETS["nano"].config)
