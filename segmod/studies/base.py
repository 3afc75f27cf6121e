"""What studies share: the runs they look at, checks of their keys, and the images they go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from segmod.ground.errors import UserError
from segmod.ground.types import labels_of
from segmod.runs.trained import TrainedRun

Row = Mapping[str, Any]
"""One line of a study's table."""

Runs = Mapping[str, TrainedRun]
"""The runs of a study by what to call them; the first one's images are looked at."""


class Study(Protocol):
    """Draws pictures of runs into a folder, and returns the lines of its table."""

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Look at the runs."""
        ...


def first_of(runs: Runs) -> TrainedRun:
    """The run whose images are looked at.

    Raises:
        UserError: There is none.
    """
    if not runs:
        raise UserError("run is required: give run=FOLDER, or several where the study compares them")
    return next(iter(runs.values()))


def only_run(runs: Runs, study: str) -> TrainedRun:
    """The run of a study that looks at one.

    Raises:
        UserError: There are several.
    """
    if len(runs) > 1:
        raise UserError(f"study={study} looks at one run, not at {', '.join(runs)}: give one run=..., and no against")
    return first_of(runs)


def label_of(run: TrainedRun, name: str) -> int:
    """Label of a class.

    Raises:
        UserError: There is no such class.
    """
    if name not in run.classes:
        raise UserError(f"study.classes: no class '{name}'; choose among {', '.join(run.classes)}")
    return run.classes.index(name)


def first_images(run: TrainedRun, count: int | None) -> range:
    """Positions of the first ``count`` images of the run's split; all for None."""
    return range(len(run.dataset) if count is None else min(count, len(run.dataset)))


def find_images(given: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Positions of the images that ``study.images`` names, by position or by id.

    Raises:
        UserError: The split has no such image.
    """
    # an id such as 2007_000033 comes as the number 2007000033
    known = {name: i for i, name in enumerate(names)} | {name.replace("_", ""): i for i, name in enumerate(names)}
    positions = []
    for entry in given:
        if isinstance(entry, int) and 0 <= entry < len(names):
            positions.append(entry)
        elif str(entry) in known:
            positions.append(known[str(entry)])
        else:
            raise UserError(
                f"study.images={entry}: give ids of the split, such as {names[0]}, or 0 to {len(names) - 1}"
            )
    if not positions:
        raise UserError("study.images=[]: give at least one image")
    return positions


def at_least(smallest: float, **values: float | None) -> None:
    """Check numbers of the config; None is always allowed.

    Raises:
        UserError: One is too small.
    """
    for key, value in values.items():
        if value is not None and value < smallest:
            raise UserError(f"study.{key}={value}: must be at least {smallest:g}")


def labels(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Most probable class of each pixel, uint8 (H, W), of probabilities (K, H, W)."""
    return labels_of(probabilities[None])[0].numpy().astype(np.uint8)


def shown(steps: Iterable[int], doing: str) -> Iterator[int]:
    """Go through images with a progress bar."""
    yield from track(list(steps), doing, console=Console(stderr=True))
