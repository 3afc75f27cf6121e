"""How the answer grows with the number of proposals (Noh, Hong, Han 2015, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segmod import charts, viz
from segmod.ground.errors import UserError
from segmod.ground.types import Count, picture_of
from segmod.inference.proposals import ProposalPredictor
from segmod.metrics import SegmentationMetrics, mean_iou, present_classes, summarise
from segmod.studies.base import Row, Runs, at_least, first_images, labels, only_run, shown


class ProposalCount:
    """Scores images after the first 1, 5, 10, ... of the selected proposals, the largest first, and draws the steps.

    The curve is the mean IoU over the classes in the truth; classes that are predicted alone count in ``mIoU``.

    Args:
        counts: Numbers of proposals after which to look, ascending.
        images: Images of the split to score; None for all.
        pictures: How many of them to draw.
    """

    def __init__(
        self, counts: Sequence[Count] = (1, 5, 10, 20, 30, 40, 50), images: Count | None = None, pictures: Count = 4
    ) -> None:
        if not counts or list(counts) != sorted(set(counts)) or counts[0] < 1:
            raise UserError(f"study.counts={list(counts)}: give numbers of proposals, ascending, from 1")
        at_least(1, images=images, pictures=pictures)
        self.counts = counts
        self.images = images
        self.pictures = pictures

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Score the images, draw steps.png and curve.png.

        Raises:
            UserError: The run is not scored by proposals.
        """
        run = only_run(runs, "proposal_count")
        predictor = run.predictor
        if not isinstance(predictor, ProposalPredictor):
            kind = type(predictor).__name__
            raise UserError(f"study=proposal_count follows proposals, and {kind} has none: give inference=proposals")
        metrics = {count: SegmentationMetrics(len(run.classes)) for count in self.counts}
        rows = []
        for position, index in enumerate(shown(first_images(run, self.images), "Scoring")):
            batch = run.batch(index)
            truth = batch["mask"].cpu()
            image = picture_of(batch["image"][0])
            tiles = [image, viz.colour_mask(truth[0], run.legend.palette)]
            with torch.inference_mode():
                for count, probabilities in predictor.progressive(run.net, batch, self.counts):
                    found = labels(probabilities[0].cpu())
                    metrics[count].update(torch.from_numpy(found.astype(np.int64))[None], truth)
                    tiles.append(viz.overlay(image, found, run.legend.palette))
            if position < self.pictures:
                rows.append(tiles)
        charts.page(rows, directory / "steps.png", ["image", "truth", *(f"{count}" for count in self.counts)])
        table: list[Row] = []
        for count, metric in metrics.items():
            confusion = metric.compute()
            summary = summarise(confusion)
            present = mean_iou(summary.iou, present_classes(confusion))
            row = {"proposals": count, "mIoU of the classes present": present, "mIoU": summary.miou}
            table.append(row | {"pixel accuracy": summary.pixel_acc})
        series = {
            name: [None if row[name] is None else 100 * row[name] for row in table]
            for name in ("mIoU of the classes present", "mIoU")
        }
        title = f"{run.name}: proposals aggregated, largest first ({len(first_images(run, self.images))} images)"
        charts.line_chart(self.counts, series, directory / "curve.png", title, "proposals", "%")
        return table
