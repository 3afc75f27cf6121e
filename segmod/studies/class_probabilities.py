"""Where two systems see a class: probability maps side by side (Noh, Hong, Han 2015, Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmod import figures, viz
from segmod.ground.errors import UserError
from segmod.ground.types import Predictor
from segmod.studies.subject import Row, Subject, at_least, scores, shown


class ClassProbabilities:
    """Draws image, truth and each system's probability of a class, for the images that show most of that class.

    The table has, for each class and system, the mean probability inside and outside the class's pixels over those
    images, void left out: a system that sees the object and nothing else has 1 and 0.

    Args:
        classes: Names of the classes, such as ``["dog", "bicycle"]``.
        pictures: Images of each class.
        against: A second system, such as an FCN of another run; None for the run alone.
        against_name: What to call it in pictures and table.
    """

    def __init__(
        self,
        classes: Sequence[str] = ("dog", "bicycle"),
        pictures: int = 4,
        against: Predictor | None = None,
        against_name: str | None = None,
    ) -> None:
        at_least(1, pictures=pictures)
        self.classes = classes
        self.pictures = pictures
        self.against = against
        self.against_name = against_name or "against"

    def __call__(self, subject: Subject, directory: Path) -> list[Row]:
        """Draw one page a class.

        Raises:
            UserError: A class does not exist, or none of them is in the split.
        """
        chosen = {name: subject.label(name) for name in self.classes}
        areas = np.zeros((len(subject.dataset), len(subject.classes)))
        for index in shown(range(len(areas)), "Looking for the classes"):
            mask = subject.dataset.read(index)[1]
            areas[index] = np.bincount(mask[mask < len(subject.classes)], minlength=len(subject.classes)) / mask.size
        systems = subject.systems(self.against, self.against_name)
        table: list[Row] = []
        for name, label in chosen.items():
            indices = [int(i) for i in np.argsort(-areas[:, label], kind="stable")[: self.pictures] if areas[i, label]]
            pages, sums = [], {system: np.zeros(4) for system in systems}
            for index in shown(indices, f"Scoring {name}"):
                batch = subject.batch(index)
                truth = batch["mask"][0].cpu().numpy()
                picture = subject.picture(batch)
                tiles = [picture, viz.colour_mask(truth)]
                inside, outside = truth == label, (truth != label) & (truth < len(subject.classes))
                for system, predictor in systems.items():
                    found = scores(predictor, subject, batch)[label].numpy()
                    tiles.append(found)
                    sums[system] += found[inside].sum(), inside.sum(), found[outside].sum(), outside.sum()
                pages.append(tiles)
            if not pages:
                continue
            columns = ["image", "truth", *(f"{system}: p({name})" for system in systems)]
            figures.page(pages, directory / f"{name}.png", columns, side=2.6, bar=f"probability of {name}")
            for system, (inside_sum, inside_count, outside_sum, outside_count) in sums.items():
                table.append({
                    "class": name, "images": len(pages), "system": system,
                    "mean p inside": inside_sum / inside_count, "mean p outside": outside_sum / max(outside_count, 1),
                })  # fmt: skip
        if not table:
            raise UserError(f"study.classes={list(self.classes)}: no image of the split shows them; choose others")
        return table
