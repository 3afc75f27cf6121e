"""segmod: semantic segmentation systems, faithful to their papers, trained and compared by the same commands."""

from __future__ import annotations

import os
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmod.runs.trained import TrainedRun

__version__ = "0.1.0"

# OpenCV reads it when it is imported: a picture of more pixels is refused, whatever its few packed bytes say.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))


def open(
    run: str | PathLike[str], runs: str | PathLike[str] = "runs", device: str = "auto", **changes: Any
) -> TrainedRun:
    """Open a trained run: ``segmod.open("fcn8s").predict("photo.jpg").labels``.

    Args:
        run: Its name, its folder, or a folder with one run below it.
        runs: Folder of the runs, where names are looked for.
        device: Where to compute: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the best there is.
        changes: What is to be otherwise than in the run, see `segmod.runs.trained.TrainedRun.open`.

    Raises:
        segmod.ground.errors.UserError: There is no such run, or there are several.
    """
    from segmod.runs.trained import TrainedRun  # here, so that importing a part of segmod costs no Hydra

    return TrainedRun.open(run, runs, **changes).to(device)
