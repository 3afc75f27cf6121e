"""Pictures of what the net predicts, drawn while it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segmod import viz
from segmod.ground.types import IGNORE_INDEX, Amount, Batch, Text, picture_of
from segmod.training.loggers import TensorBoardLogger, attempt


@dataclass(frozen=True)
class Example:
    """One validation image and its prediction."""

    index: int  # position in the validation set
    name: str
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: NDArray[np.uint8] | None  # (H, W) labels; None where the image has none
    prediction: NDArray[np.uint8]  # (H, W) labels


def examples(labels: Tensor, batch: Batch, count: int) -> Iterator[Example]:
    """Images of a validation batch that are among the first ``count`` of the set, on whichever rank they come.

    Args:
        labels: Predicted labels (B, H, W), as `SegmentationModule.validation_step` returns them.
        batch: What they were predicted from.
        count: Images to draw.
    """
    for i, (index, name) in enumerate(zip(batch["index"].tolist(), batch["name"], strict=True)):
        if index < count:
            truth = batch["mask"][i].cpu().numpy()
            yield Example(
                index=index,
                name=name,
                image=picture_of(batch["image"][i]),
                truth=truth if (truth != IGNORE_INDEX).any() else None,
                prediction=labels[i].cpu().numpy().astype(np.uint8),
            )


class PredictionPictures(L.Callback):
    """Draws image, truth and prediction of the first validation images, as PNG files and into TensorBoard.

    The files are overwritten by each validation; the one at the end of a run leaves the pictures of the weights that
    metrics.json scores. Those that cannot be written are a warning, for they are not worth a run. `WandbPanels` sends
    the same images to W&B, with masks that can be switched on and off.

    Args:
        directory: Where the pictures go.
        count: Images to draw; 0 for none.
    """

    def __init__(self, directory: Text, count: Amount = 4) -> None:
        self.directory = Path(directory)
        self.count = count

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Draw the images of this batch that are to be drawn."""
        if trainer.sanity_checking:
            return
        for example in examples(outputs, batch, self.count):
            _, classes, palette = trainer.datamodule.legend  # type: ignore[attr-defined]
            picture = viz.panel(example.image, example.truth, example.prediction, classes, palette)
            path = self.directory / f"{example.index:03d}_{Path(example.name).name}.png"
            attempt(f"pictures in {self.directory}", partial(viz.save_png, picture, path))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    tag = f"pictures/{example.index:03d}_{example.name}"
                    logger.attempt(partial(_add_image, logger, tag, picture, trainer.global_step))


def _add_image(logger: TensorBoardLogger, tag: str, picture: NDArray[np.uint8], step: int) -> None:
    logger.experiment.add_image(tag, picture, step, dataformats="HWC")
