"""Building llama.c on unusual systems."""

import errno
from pathlib import Path

import pytest

from llucid.native import build


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", refused)
    monkeypatch.setenv("CC", """sh -c 'while [ "$1" != -o ]; do shift; done; echo built > "$2"' cc""")
    assert build.built().read_text() == "built\n"
