"""Atomic replacement of files and folders; only the content of the old file is replaced."""

import contextlib
import errno
import json
import os
import stat
import threading
import tracemalloc
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from llucid.errors import LlucidError, one_line, printable_json
from llucid.files import (
    DEEPEST_JSON,
    MOVING,
    OWN,
    OccupiedError,
    atomic_file,
    atomic_folder,
    cache_folder,
    cached,
    first_bytes,
    is_occupied,
    json_value,
    locked_folder,
    read_json,
    refuse_stand_in,
    remove_unfinished,
    replaced_in_errors,
    temporary_name,
    write_text_atomically,
)


def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "talk.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file.name)
    write_text_atomically(link, "new")
    assert link.is_symlink()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("new", 0o600)
    assert sorted(tmp_path.iterdir()) == [link, file]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    """Also if a library, such as safetensors, replaces it by one that only its owner can read."""
    (tmp_path / "other").touch()
    (tmp_path / "private").touch(0o600)
    with atomic_file(tmp_path / "file") as temporary:
        (tmp_path / "private").rename(temporary)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_long_names_that_begin_alike_are_written_at_once(tmp_path: Path) -> None:
    one, two = (tmp_path / ("x" * 60 + end) for end in ("a", "b"))
    with atomic_file(one) as first, atomic_file(two) as second:
        first.write_text("1")
        second.write_text("2")
    assert (one.read_text(), two.read_text()) == ("1", "2")


@pytest.mark.parametrize("letter", ["n", "é", "😀"], ids=ascii)
def test_names_of_255_bytes_are_written(letter: str, tmp_path: Path) -> None:
    name = letter * (255 // len(letter.encode()))
    write_text_atomically(tmp_path / name, "new")
    (tmp_path / name).rename(tmp_path / "file")
    with atomic_folder(tmp_path / name) as folder:
        folder.joinpath("file").touch()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", tmp_path / name])


def test_the_target_of_a_dangling_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_the_target_of_a_dangling_link_becomes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "folder").exists()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "folder", tmp_path / "folder" / "file", tmp_path / "link"]


def test_an_empty_folder_is_filled_atomically(tmp_path: Path) -> None:
    for failing, left in ((True, set[str]()), (False, {"one", "two"})):
        with contextlib.suppress(KeyboardInterrupt), atomic_folder(tmp_path) as folder:
            (folder / "one").write_text("1")
            assert not (tmp_path / "one").exists()
            if failing:
                raise KeyboardInterrupt
            (folder / "two").write_text("2")
        assert {file.name for file in tmp_path.iterdir()} == left


def test_files_are_moved_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.toml, which makes the folder a run, comes after the model."""
    moved, real = list[str](), os.link
    monkeypatch.setattr(os, "link", lambda path, to: (moved.append(to.name), real(path, to)))
    names = {f"{digit}" for digit in range(9)} | {"model.safetensors", "train.toml", "config.json"}
    with atomic_folder(tmp_path) as folder:
        for name in names:
            (folder / name).write_text("new")
    assert moved == sorted(names)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("file", [True, False])
def test_a_name_that_is_taken_between_two_moves_is_kept(
    file: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a folder got before is removed; what is beside a file may be there with the same content, and stays."""
    real = os.link

    def taken(path: Path, to: Path) -> None:
        if to.name == "b":
            to.write_text("other")
        if not links:
            raise OSError(errno.EPERM, "no links")
        real(path, to)

    monkeypatch.setattr(os, "link", taken)
    (tmp_path / "beside").write_text("same")
    out = tmp_path / "b" if file else tmp_path / "out"
    if not file:
        out.mkdir()
    with pytest.raises(OccupiedError), atomic_folder(out, file=file) as place:  # noqa: PT012
        for name in ("a", "b", "beside", "c") if file else ("a", "b", "c"):
            (place.parent if file else place).joinpath(name).write_text("same")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    stay = dict.fromkeys("ac", "same") if file else {}
    assert {path.name: path.read_text() for path in left} == {"b": "other", "beside": "same"} | stay


def test_partial_files_of_a_killed_process_do_not_occupy_a_folder(tmp_path: Path) -> None:
    assert not is_occupied(tmp_path / "nothing")
    assert not is_occupied(tmp_path)
    (tmp_path / ".run.7.partial").mkdir()
    assert not is_occupied(tmp_path)
    (tmp_path / "file").write_text("old")
    assert is_occupied(tmp_path)
    assert is_occupied(tmp_path / "file")


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_that_was_filled_only_in_part_is_empty(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error between two moves removes what was moved, and nothing else; after a kill, the next attempt does."""

    def fill(names: str) -> None:
        with atomic_folder(tmp_path) as folder:
            for name in names:
                (folder / name).touch()
            (folder / "s").mkdir()

    def ended(path: Path, to: Path) -> None:
        (to / "another's").mkdir(parents=True)
        rename(path, to)

    rename = Path.rename
    left = tmp_path / temporary_name(tmp_path.name, 4194999)
    monkeypatch.setattr(Path, "rename", ended)
    if killed:
        monkeypatch.setattr("llucid.files._discard", lambda path: path.exists() and rename(path, left))
    with pytest.raises(OccupiedError):
        fill("abz")
    monkeypatch.undo()
    (tmp_path / "s" / "another's").rmdir()
    (tmp_path / "s").rmdir()
    assert (tmp_path / "a").exists() == killed
    assert not is_occupied(tmp_path)
    fill("d")
    assert {path.name for path in tmp_path.iterdir()} == {"d", "s"}
    with pytest.raises(OccupiedError):
        fill("d")
    assert {path.name for path in tmp_path.iterdir()} == {"d", "s"}


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_that_was_just_moved_is_removed(killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(path: Path, to: Path) -> None:
        rename(path, to)
        raise KeyboardInterrupt

    rename = Path.rename
    left = tmp_path / temporary_name(tmp_path.name, 4194999)
    monkeypatch.setattr(Path, "rename", ended)
    if killed:
        monkeypatch.setattr("llucid.files._discard", lambda path: path.exists() and rename(path, left))
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path) as folder:  # noqa: PT012
        (folder / "a").touch()
        (folder / "s").mkdir()
    monkeypatch.undo()
    assert (tmp_path / "s").exists() == killed
    with atomic_folder(tmp_path) as folder:
        (folder / "d").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("listed", ["{path}", '{{"{path}": 1}}', '{{"{path}": {identity}}}', '{{"kept": {inode}}}'])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_from_elsewhere_removes_nothing(there: bool, listed: str, tmp_path: Path) -> None:
    """A checkout or an archive may hold what looks like a temporary folder that a kill has left."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    (out if there else tmp_path).mkdir(exist_ok=True)
    left = (out if there else tmp_path) / temporary_name("out", 4194999)
    left.mkdir()
    found = kept.stat()
    identity = [found.st_ino, found.st_mtime_ns]
    (left / MOVING).write_text(listed.format(path=kept, identity=identity, inode=[found.st_ino, 0]))
    with atomic_folder(out) as folder:
        (folder / "a").touch()
    assert sorted(tmp_path.iterdir()) == [kept, out]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_list_of_another_user_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may list a shared folder knows the identities of what is in it."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.touch()
    found = kept.stat()
    for user, there in ((os.getuid() + 1, True), (os.getuid(), False)):
        left = tmp_path / temporary_name("out", 4194999)
        left.mkdir()
        (left / MOVING).write_text(json.dumps({"kept": [found.st_ino, found.st_mtime_ns]}))
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        remove_unfinished(out)
        assert kept.exists() == there


@pytest.mark.parametrize("there", [False, True])
def test_partial_files_of_a_process_with_our_id_are_removed(there: bool, tmp_path: Path) -> None:
    """In containers, processes often have the same id."""
    out = tmp_path / "out"
    left = (out if there else tmp_path) / f".out.{os.getpid()}.partial"
    left.mkdir(parents=True)
    (left / "half").write_text("old")
    with atomic_folder(out) as folder:
        (folder / "whole").write_text("new")
    assert [path.name for path in out.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_killed_processes_left_of_a_place_is_removed(tmp_path: Path) -> None:
    out, long = tmp_path / "a.gguf", "x" * 99
    left = [tmp_path / temporary_name("a.gguf", 4194999), tmp_path / temporary_name(long, 4194999) / "inside"]
    kept = [tmp_path / temporary_name(*which) for which in (("a.gguf", os.getppid()), ("b.gguf", 4194999))]
    left[1].mkdir(parents=True)
    for path in (left[0], *kept):
        path.touch()
    remove_unfinished(out)
    remove_unfinished(tmp_path / long)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    out.touch()
    left[0].touch()
    with pytest.raises(OccupiedError), atomic_folder(out, file=True):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([*kept, out])


def test_what_killed_processes_left_of_a_file_in_the_cache_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    name = "a" * 60
    left, *kept = (tmp_path / temporary_name(of, f"1-{at}") for at, of in enumerate((name, "b", name)))
    for folder in (left, *kept):
        folder.mkdir()
        (folder / "half").touch()
    with locked_folder(kept[1]):
        made = cached(name, lambda path: path.write_text("a") and None)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, made])


def test_a_new_folder_is_locked_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another process would take it for what a killed one left."""

    def look(path: Path, to: Path) -> None:
        remove_unfinished(tmp_path / "out")
        rename(path, to)
        OWN.clear()  # as it is for another process
        remove_unfinished(tmp_path / "out")

    rename = os.rename
    monkeypatch.setattr(os, "rename", look)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_threads_do_not_share_unfinished_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "cache"))
    half, both = threading.Event(), threading.Event()

    def slowly(path: Path) -> None:
        with open(path, "w") as file:
            file.write("one, ")
            file.flush()
            half.set()
            both.wait()
            file.write("two")

    def fill(name: str) -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / name).touch()
            half.set()
            both.wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cached, "a", slowly)
        half.wait()
        made = cached("a", lambda path: path.write_text("one, two") and None)
        both.set()
        assert waiting.result() == made
        assert [path.read_text() for path in made.parent.iterdir()] == ["one, two"]
        for event in (half, both):
            event.clear()
        waiting = pool.submit(fill, "first")
        half.wait()
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "second").touch()
        both.set()
        with pytest.raises(OccupiedError):
            waiting.result()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second"]
    assert len([*tmp_path.iterdir()]) == 2


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("LLUCID_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "llucid"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # empty counts as unset in the XDG specification
    assert cache_folder() == tmp_path / ".cache" / "llucid"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("wrote 3 of 4 bytes"), "file cannot be written: wrote 3 of 4 bytes"),
        (OSError(errno.ENOSPC, "No space left"), "file: No space left"),
        (SafetensorError("disk full"), "file cannot be written: disk full"),
        (OSError(errno.EACCES, "Permission denied", "/another"), "/another: Permission denied"),
    ],
)
def test_errors_of_writing_name_the_file(error: Exception, message: str, tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(OSError, match=message.rsplit(": ")[-1]) as caught:
        fail()
    assert one_line(caught.value).removeprefix(f"{tmp_path}/") == message
    assert not any(tmp_path.iterdir())


def test_a_pipe_is_written_to_directly(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_text_atomically(pipe, "new")
    reader.join(10)
    assert received == ["new"]
    assert pipe.is_fifo()


def test_a_pipe_in_dev_fd_is_written_to_directly() -> None:
    reading, writing = os.pipe()
    with open(reading) as read, open(writing, "w"):
        write_text_atomically(Path(f"/dev/fd/{writing}"), "new\n")
        assert read.readline() == "new\n"


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(tmp_path / "file", "half" * 10_000 + "\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_errors_on_a_read_only_file_system_name_the_user_s_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a missing file also fails there; that error must not replace the first one."""

    def refused(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(Path, "write_bytes", lambda path, *_, **__: refused(path))
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text_atomically(tmp_path / "file", "new")
    assert one_line(caught.value) == f"{tmp_path / 'file'}: Read-only file system"
    unfinished = tmp_path / ".out.7.partial"
    with pytest.raises(OSError, match="Read-only") as caught, replaced_in_errors(unfinished, tmp_path / "out"):
        refused(unfinished / "state")
    assert one_line(caught.value) == f"{tmp_path / 'out' / 'state'}: Read-only file system"


def test_error_messages_have_no_control_characters() -> None:
    assert one_line(LlucidError(f"{'a' * 1000}{'x' * 10**6}{'b' * 500}")) == f"{'a' * 1000} … {'b' * 500}"
    assert len(str(LlucidError("x" * 10**5))) == 1503
    assert one_line(LlucidError("a \x1b]0;title\x07\nb\x9b[2J")) == "a ␛]0;title␇ b\ufffd[2J"


def test_printed_json_has_no_control_characters() -> None:
    value = ["".join(map(chr, range(0x250))), "\u202eabc\u2066", "漢😀"]
    printed = printable_json(value)
    assert json.loads(printed) == value
    assert "漢😀" in printed
    kinds = {unicodedata.category(letter) for letter in printed.replace("\xad", "")}  # the soft hyphen
    assert kinds.isdisjoint({"Cc", "Cf"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_text_atomically(Path("/dev/full"), "text")
    assert one_line(caught.value).startswith("/dev/full: ")


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[1, {"a": ', ', "b": 2}, 3]')])
def test_json_is_nested_to_a_limit(begin: str, end: str) -> None:
    deepest = DEEPEST_JSON // (begin.count("[") + begin.count("{"))

    def nested(depth: int) -> Any:
        return json_value(f"{begin * depth}1{end * depth}".encode().ljust(50_000))

    assert nested(deepest) is not None
    for depth in (deepest + 1, 5 * deepest, 20 * deepest):
        with pytest.raises(ValueError, match="nested too deeply"):
            nested(depth)


@pytest.mark.parametrize("value", [r"\\frac{a}{b}" * 1000, [[1, 2]] * 5000, "[" * 5000, ['"[{', "\\"] * 3000])
def test_json_may_have_many_brackets(value: Any) -> None:
    assert json_value(json.dumps(value).encode()) == value


@pytest.mark.parametrize("unit", ["[" * 90 + "]" * 90, "{}", '{"":[]}', '"[",[]'])
def test_json_is_not_mostly_of_empty_lists(unit: str) -> None:
    """They would take 25 to 45 times as much memory as the text."""
    content = f"[{','.join([unit] * (1_000_000 // len(unit)))}]".encode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="mostly empty lists or objects"):
        json_value(content)
    assert tracemalloc.get_traced_memory()[1] < 6 * len(content)
    tracemalloc.stop()


def test_a_cache_that_cannot_be_written_to_is_reported_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only file system
    with pytest.raises(LlucidError, match="cannot be written to; set LLUCID_CACHE to another folder"):
        cached("a", Path.touch)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc here")
def test_a_file_without_a_size_is_not_read(tmp_path: Path) -> None:
    """Some of /proc wait for what comes, in a model's folder behind a link."""
    assert first_bytes(Path("/proc/self/maps"), 10) == b""
    with pytest.raises(LlucidError, match="the file is empty"):
        refuse_stand_in(Path("/proc/self/maps"))
    with pytest.raises(LlucidError, match="/proc/self/maps: "):
        read_json(Path("/proc/self/maps"))
