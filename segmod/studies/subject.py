"""What a study looks at: a trained net, how it scores an image, and the images of a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import default_collate

from segmod.data.base import SegmentationDataset
from segmod.ground.errors import UserError
from segmod.ground.types import Batch, Predictor, labels_of, picture_of

Row = Mapping[str, Any]
"""One line of a study's table."""


class Study(Protocol):
    """Draws pictures of a subject into a folder, and returns the lines of its table."""

    def __call__(self, subject: Subject, directory: Path) -> list[Row]:
        """Look at the subject."""
        ...


@dataclass(frozen=True)
class Subject:
    """A trained run and the images of one split.

    Attributes:
        name: Of the run, for headings.
        net: Trained, in evaluation mode, on the device where it computes.
        predictor: How the run scores a whole image.
        dataset: Whole images with their truth, not augmented.
        classes: Names of the classes in the order of their labels.
    """

    name: str
    net: nn.Module
    predictor: Predictor
    dataset: SegmentationDataset
    classes: Sequence[str]

    def batch(self, index: int) -> Batch:
        """One image of the split as a batch on the device of the net."""
        batch = cast(Batch, default_collate([self.dataset[index]]))
        device = next(self.net.parameters()).device
        batch["image"], batch["mask"] = batch["image"].to(device), batch["mask"].to(device)
        return batch

    def picture(self, batch: Batch) -> NDArray[np.uint8]:
        """The image of a batch, uint8 (H, W, 3), RGB."""
        return picture_of(batch["image"][0])

    def systems(self, against: Predictor | None, name: str) -> dict[str, Predictor]:
        """The run's own way of scoring an image, and the one it is compared with, by name."""
        systems: dict[str, Predictor] = {self.name: self.predictor}
        if against is not None:
            systems[name] = against
        return systems

    def label(self, name: str) -> int:
        """Label of a class.

        Raises:
            UserError: There is no such class.
        """
        if name not in self.classes:
            raise UserError(f"study.classes: no class '{name}'; choose among {', '.join(self.classes)}")
        return list(self.classes).index(name)

    def first(self, count: int | None) -> range:
        """Positions of the first ``count`` images of the split; all for None."""
        return range(len(self.dataset) if count is None else min(count, len(self.dataset)))


def at_least(smallest: float, **values: float | None) -> None:
    """Check numbers of the config; None is always allowed.

    Raises:
        UserError: One is too small.
    """
    for key, value in values.items():
        if value is not None and value < smallest:
            raise UserError(f"study.{key}={value}: must be at least {smallest:g}")


def scores(system: Predictor, subject: Subject, batch: Batch) -> torch.Tensor:
    """Class probabilities of one image, float32 (K, H, W), on the CPU."""
    with torch.inference_mode():
        return system(subject.net, batch)[0].cpu()


def labels(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Most probable class of each pixel, uint8 (H, W), of probabilities (K, H, W)."""
    return labels_of(probabilities[None])[0].numpy().astype(np.uint8)


def shown(steps: Iterable[int], doing: str) -> Iterator[int]:
    """Go through images with a progress bar."""
    yield from track(list(steps), doing, console=Console(stderr=True))
