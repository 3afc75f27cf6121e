"""Files are there whole or not at all, and what a crash leaves is cleared away."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segmod.ground.files import remove_parts, replace_text, replacing


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
