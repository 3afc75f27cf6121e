"""``segmod-new DIR``: a project of one's own that works as it is: a net, a data set, their configs and a test."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from segmod.ground.errors import require
from segmod.ground.files import writing

STARTER = Path(__file__).with_name("starter")


def main(words: list[str]) -> None:
    """Write the project into a folder that is new or empty.

    Raises:
        UserError: The folder holds something, or cannot be written.
    """
    parser = argparse.ArgumentParser("segmod-new", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    folder: Path = parser.parse_args(words).folder.expanduser()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(is_free, f"{folder}: holds something already: give a new folder")
    with writing(folder):
        shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    print(f"cd {shlex.quote(str(folder))}\nsegmod-train --config-dir conf experiment=own\npython -m pytest")
