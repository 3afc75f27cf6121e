"""Where two systems see a class: probability maps side by side (Noh, Hong, Han 2015, Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmod import charts, viz
from segmod.ground.errors import UserError
from segmod.ground.types import Count, picture_of
from segmod.studies.base import Row, Runs, at_least, first_of, label_of, shown


class ClassProbabilities:
    """Draws image, truth and each system's probability of a class, for the images that show most of that class.

    The table has, for each class and system, the mean probability inside and outside the class's pixels over those
    images, void left out: a system that sees the object and nothing else has 1 and 0.

    Args:
        classes: Names of the classes, such as ``["dog", "bicycle"]``.
        pictures: Images of each class.
    """

    def __init__(
        self,
        classes: Sequence[str] = ("dog", "bicycle"),
        pictures: Count = 4,
    ) -> None:
        at_least(1, pictures=pictures)
        self.classes = classes
        self.pictures = pictures

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw one page a class.

        Raises:
            UserError: A class does not exist, or none of them is in the split.
        """
        run = first_of(runs)
        chosen = {name: label_of(run, name) for name in self.classes}
        areas = np.zeros((len(run.dataset), len(run.classes)))
        for index in shown(range(len(areas)), "Looking for the classes"):
            mask = run.dataset.read(index)[1]
            areas[index] = np.bincount(mask[mask < len(run.classes)], minlength=len(run.classes)) / mask.size
        table: list[Row] = []
        for name, label in chosen.items():
            indices = [int(i) for i in np.argsort(-areas[:, label], kind="stable")[: self.pictures] if areas[i, label]]
            pages, sums = [], {system: np.zeros(4) for system in runs}
            for index in shown(indices, f"Scoring {name}"):
                batch = run.batch(index)
                truth = batch["mask"][0].cpu().numpy()
                tiles = [picture_of(batch["image"][0]), viz.colour_mask(truth, run.legend.palette)]
                inside, outside = truth == label, (truth != label) & (truth < len(run.classes))
                for system, scored in runs.items():
                    found = scored.scores(batch)[0, label].numpy()
                    tiles.append(found)
                    sums[system] += found[inside].sum(), inside.sum(), found[outside].sum(), outside.sum()
                pages.append(tiles)
            if not pages:
                continue
            columns = ["image", "truth", *(f"{system}: p({name})" for system in runs)]
            charts.page(pages, directory / f"{name}.png", columns, side=2.6, bar=f"probability of {name}")
            for system, (inside_sum, inside_count, outside_sum, outside_count) in sums.items():
                table.append({
                    "class": name, "images": len(pages), "system": system,
                    "mean p inside": inside_sum / inside_count, "mean p outside": outside_sum / max(outside_count, 1),
                })  # fmt: skip
        if not table:
            raise UserError(f"study.classes={list(self.classes)}: no image of the split shows them; choose others")
        return table
