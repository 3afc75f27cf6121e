"""Files are there whole or not at all, and what a crash leaves is cleared away."""

import errno
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from segmod.ground.errors import UserError, reason
from segmod.ground.files import open_file, read_text, remove_parts, replace_text, replacing, require_writable, writing


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "metrics.json"
    replace_text(path, "old")
    replace_text(path, "new: é\r\n")  # as it is given: no newline is translated
    assert path.read_bytes() == "new: é\r\n".encode()
    assert os.listdir(path.parent) == ["metrics.json"]


def test_readers_see_the_old_file_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old")
    with replacing(path) as file:
        file.write(b"n" * 100_000)
        assert path.read_text() == "old"
    assert path.read_text() == "n" * 100_000


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_the_contents_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    synced = []

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    replace_text(path, "12345")
    assert synced == [(5, False)]


def test_two_threads_write_the_same_file_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as file:
        file.write(b"one")
        other = threading.Thread(target=replace_text, args=(path, "another"))
        other.start()
        other.join()
        assert path.read_text() == "another"
    assert path.read_text() == "one"


def test_parts_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    program = (
        "import os, sys; from segmod.ground.files import replacing\n"
        "with replacing(sys.argv[1]) as file: file.write(b'half'); file.flush(); os._exit(9)"  # as a SIGKILL would
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "last.ckpt")], check=False)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".last.ckpt.")
    others = {"film.mkv.part", ".notes.part", f".a.txt.{os.getppid()}.7.part"}  # no part of ours; of a living process
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f".a.txt.{os.getpid()}.7.part").touch()  # of a process that had our number before, in a container
    remove_parts(tmp_path)
    assert set(os.listdir(tmp_path)) == others
    remove_parts(tmp_path / "absent")


# -- what is no file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "nothing"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("/dev/zero" if kind == "device" else "it")
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)  # opening it would wait for a writer
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        for read in (open_file, read_text):
            with pytest.raises(OSError, match=str(path)) as caught:
                read(path)
            assert caught.value.strerror


def test_a_file_or_a_link_to_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("é".encode())
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b") == "é"
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"\xc3\xa9"


# -- what cannot be written ------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse what goes beyond a size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    replace_text(path, "old")
    with files_of_at_most(4096), pytest.raises(UserError) as caught:
        replace_text(path, "x" * 10_000)
    line = r"metrics.json: cannot be written (File too large): free some disk space or choose another folder, then run"
    assert line in str(caught.value)
    assert os.listdir(tmp_path) == ["metrics.json"]
    assert path.read_text() == "old"


def test_what_torch_cannot_save_is_one_line(tmp_path: Path) -> None:
    def save() -> None:
        with replacing(tmp_path / "points.pt") as file:
            torch.save(torch.zeros(10_000), file)  # which raises a RuntimeError of its own

    with files_of_at_most(4096), pytest.raises(UserError, match=r"points\.pt: cannot be written \(File too large\)"):
        save()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_each_reason_is_told_with_file_and_remedy(tmp_path: Path, number: int) -> None:
    def fail() -> None:
        with writing(tmp_path / "new" / "a.png"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(UserError) as caught:
        fail()
    remedy = "mend that" if number in (errno.EROFS, errno.EACCES) else "free some disk space"
    told = f"{tmp_path}/new/a.png: cannot be written ({os.strerror(number)}): {remedy} or choose another folder"
    assert str(caught.value) == f"{told}, then run again"


def test_other_errors_pass(tmp_path: Path) -> None:
    def fail() -> None:
        with writing(tmp_path / "a.png"):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fail()


def test_a_folder_is_tried_before_any_work_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "new" / "deeper")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be written \(\S+file is no folder\)"):
        require_writable(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"out: cannot be written \(no right to write into"):
        require_writable(tmp_path / "out")


def test_a_reason_is_short_and_never_asks_to_run_what_a_file_holds(tmp_path: Path) -> None:
    torch.save(Path("x"), tmp_path / "a.pt")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert reason(caught.value) == "it is damaged, or holds more than plain values"
    assert reason(ValueError("\n one\t two \nthree")) == "one two"
    assert reason(ValueError()) == "ValueError"
    assert reason(KeyError("boxes")) == "no 'boxes'"
    assert reason(OSError(28, "No space left on device", "a")) == "No space left on device"
    assert len(reason(ValueError("x" * 1000))) == 100
