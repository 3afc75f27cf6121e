"""What several systems make of the same images, beside the truth (Long et al. 2015, Fig. 4, and others)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segmod import charts, viz
from segmod.ground.types import IGNORE_INDEX, Batch, Count, UInt8Array, picture_of
from segmod.metrics import SegmentationMetrics, mean_iou, present_classes, summarise
from segmod.studies.base import Row, Runs, at_least, find_images, first_images, first_of, labels, shown


class SideBySide:
    """Draws image, truth and the labels of each run, under its mean IoU, for images where the runs differ most.

    The runs differ in a pixel that is not void where not all give it the same label; a single run is held against the
    truth. The mean IoU is that over the classes in the truth of all images looked at, and the table has it with the
    pixel accuracy.

    Args:
        images: Images to draw: ids of the split, or positions in it; None for those where the runs differ most.
        pictures: How many to draw where ``images`` is None.
        measure: So many images of the split to score and to choose from; None for all.
    """

    def __init__(
        self, images: Sequence[int | str] | None = None, pictures: Count = 4, measure: Count | None = None
    ) -> None:
        at_least(1, pictures=pictures, measure=measure)
        self.images = images
        self.pictures = pictures
        self.measure = measure

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw side_by_side.png.

        Raises:
            UserError: The split has no such image.
        """
        run = first_of(runs)
        chosen = None if self.images is None else find_images(self.images, run.dataset.names)
        metrics = {system: SegmentationMetrics(len(run.classes)) for system in runs}
        differ: dict[int, float] = {}
        for index in shown(first_images(run, self.measure), "Comparing"):
            batch = run.batch(index)
            mask = batch["mask"].cpu()
            found = _labels(runs, batch)
            for system, own in zip(runs, found, strict=True):
                metrics[system].update(torch.from_numpy(own.astype(np.int64))[None], mask)
            truth = mask[0].numpy()
            others = found[1:] or [truth]
            differs = np.any([other != found[0] for other in others], axis=0)
            differ[index] = float(differs[truth != IGNORE_INDEX].sum() / truth.size)
        table: list[Row] = []
        for system, metric in metrics.items():
            confusion = metric.compute()
            summary = summarise(confusion)
            present = mean_iou(summary.iou, present_classes(confusion))
            table.append({
                "run": system, "images": len(differ), "mIoU of the classes present": present, "mIoU": summary.miou,
                "pixel accuracy": summary.pixel_acc,
            })  # fmt: skip
        if chosen is None:
            chosen = sorted(differ, key=lambda index: -differ[index])[: self.pictures]
        self._draw(runs, chosen, table, directory / "side_by_side.png")
        return table

    def _draw(self, runs: Runs, images: Sequence[int], table: Sequence[Row], path: Path) -> None:
        run = first_of(runs)
        rows: list[list[charts.Tile]] = []
        masks = []
        for index in shown(images, "Drawing"):
            batch = run.batch(index)
            here = [batch["mask"][0].cpu().numpy(), *_labels(runs, batch)]
            masks += here
            rows.append([picture_of(batch["image"][0]), *(viz.colour_mask(mask, run.legend.palette) for mask in here)])
        scores = [row["mIoU of the classes present"] for row in table]
        headings = [
            system if score is None else f"{system}\nmIoU {100 * score:.1f} %"
            for system, score in zip(runs, scores, strict=True)
        ]
        legend = viz.class_colours(masks, run.classes, run.legend.palette)
        names = [run.dataset.names[index] for index in images]
        charts.page(rows, path, ["image", "truth", *headings], names, side=2.4, legend=legend)


def _labels(runs: Runs, batch: Batch) -> list[UInt8Array]:
    """What each run makes of an image."""
    return [labels(run.scores(batch)[0]) for run in runs.values()]
