"""Names that files and folders are given after: of runs, of splits and of images."""

from __future__ import annotations

import re

from segmod.ground.errors import UserError

LONGEST = 200  # bytes of a part: file systems take 255, and a file is written under a longer name before it is moved
_DEEPEST = 10
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]|^[A-Za-z]:")  # no letter of a drive, no half of a character


def require_name(name: object, told: str, *, nested: bool = True) -> str:
    """Check a name after which something is written below a folder: what is written stays inside, whatever it is.

    Args:
        name: Such as ``2007_000033`` or ``val/cat 1``.
        told: What it is to the user, at the beginning of the message: ``name=``, the file of a list.
        nested: Whether it may name folders on the way, by slashes.

    Returns:
        The name.

    Raises:
        UserError: It is empty, too long, or leads elsewhere.
    """
    text = str(name)
    parts = text.split("/")
    fits = len(parts) <= (_DEEPEST if nested else 1) and not _ODD.search(text)
    if fits and all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST for part in parts):
        return text
    slashes = "parts between slashes (none of them empty, . or ..)" if nested else "no slash, . or .."
    shown = ascii(text)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    raise UserError(f"{told}{shown} can be no file's name: give {slashes}, no backslash, at most {LONGEST} bytes each")
