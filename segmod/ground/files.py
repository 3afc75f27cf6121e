"""Files that are there whole or not at all, and names that stay inside their folder."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from segmod.ground.errors import UserError, behind, reason

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers that say that there is no room: of the disk, of a quota, of a limit."""


class UnwritableError(UserError, OSError):
    """A file or folder that cannot be written; made of error number, reason and path, as an `OSError`."""

    def __str__(self) -> str:
        """The line that the user sees."""
        remedy = "free some disk space" if self.errno in FULL else "mend that"
        return (
            f"{self.filename}: cannot be written ({self.strerror}): {remedy} or choose another folder, then run again"
        )


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read, if it is one: a pipe or a device would keep who reads it waiting for ever.

    Raises:
        OSError: It cannot be read, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a folder, pipe or device, not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a file, without the mark that some editors put before it.

    Raises:
        OSError: As `open_file`.
        UnicodeDecodeError: It is not in UTF-8.
    """
    with open_file(path) as file:
        return file.read().decode("utf-8-sig")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make the folder of a file that is then written, and say in a line if that fails.

    Raises:
        UnwritableError: It cannot be written: the disk is full, say, or read-only.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what a file tells it
        cause = behind(error)
        if cause is None:
            raise
        raise UnwritableError(cause.errno, reason(cause), str(path)) from error


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Check, before any work, that files may be written into a folder, which need not be there yet; makes nothing.

    Raises:
        UnwritableError: They may not.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UnwritableError(errno.ENOTDIR, f"{there} is no folder", str(folder))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UnwritableError(errno.EACCES, f"no right to write into {there}", str(folder))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all has gone well; else the old file stays as it was.

    It is written beside its place under a name that no other process or thread uses, flushed to the disk, and moved
    there whole: a reader sees the old file or the new one, never half of one, after a crash of the machine too.

    Args:
        path: The file; its folder is made.

    Raises:
        UnwritableError: It cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    with writing(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file whole, see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


class LogFile(logging.FileHandler):
    """A log that is not worth a run: where it cannot be written, it ends, with a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; the first one makes the file."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Tell of the error, and write no more."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        sys.stderr.write(f"segmod: warning: {self.baseFilename}: cannot be written ({reason(error)})\n")


def remove_parts(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that are no more have left half-written in a folder; the parts of living ones stay."""
    for part in Path(folder).glob(".*.part"):
        writer = re.fullmatch(r"\..+\.(\d+)\.\d+\.part", part.name)
        if writer and not _alive(int(writer[1])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether another process of this machine has this number; our own may have been another's in a container."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()
