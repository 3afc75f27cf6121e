"""Files that are there whole or not at all, and names that stay inside their folder."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all has gone well; else the old file stays as it was.

    It is written beside its place under a name that no other process or thread uses, flushed to the disk, and moved
    there whole: a reader sees the old file or the new one, never half of one, after a crash of the machine too.

    Args:
        path: The file; its folder is made.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
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
