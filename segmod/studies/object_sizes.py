"""Objects much larger or smaller than a net's receptive field (Noh, Hong, Han 2015, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from segmod import charts, viz
from segmod.data.instances import find_instances
from segmod.ground.errors import UserError
from segmod.ground.types import Count, Fraction, picture_of
from segmod.studies.base import Row, Runs, at_least, first_images, first_of, labels, shown


@dataclass(frozen=True)
class _Case:
    """One object and how much of it each system finds."""

    index: int  # of the image
    label: int
    share: float  # of the image's pixels
    found: tuple[float, ...]  # fraction of its pixels with its class, a system


class ObjectSizes:
    """Counts how much of an object each system finds by the object's size, and draws the largest and smallest objects.

    An FCN has one receptive field for objects of all sizes: it labels large ones in pieces and misses small ones, which
    the paper shows by examples. The table makes it a number: for each range of sizes, the mean over the objects of the
    fraction of their pixels that got their class.

    Args:
        edges: Borders of the ranges of size, as shares of the image's pixels, ascending within 0..1.
        images: Images of the split to score; None for all.
        pictures: Cases to draw of each kind: the largest, and the smallest of at least ``least``.
        least: Objects smaller than this share of the image are left out.
    """

    def __init__(
        self,
        edges: Sequence[float] = (0.01, 0.05, 0.15, 0.4),
        images: Count | None = None,
        pictures: Count = 4,
        least: Fraction = 0.001,
    ) -> None:
        if list(edges) != sorted(set(edges)) or not all(0 < edge < 1 for edge in edges):
            raise UserError(f"study.edges={list(edges)}: give shares of the image, ascending, between 0 and 1")
        at_least(1, images=images, pictures=pictures)
        at_least(0, least=least)
        self.edges = edges
        self.images = images
        self.pictures = pictures
        self.least = least

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Score the objects, draw large.png and small.png.

        Raises:
            UserError: The split has no object of that size.
        """
        run = first_of(runs)
        cases: list[_Case] = []
        for index in shown(first_images(run, self.images), "Scoring objects"):
            mask = run.dataset.read(index)[1]
            objects, numbered = find_instances(mask, run.dataset.read_objects(index))
            kept = [thing for thing in objects if (numbered == thing.number).mean() >= self.least]
            if not kept:
                continue
            batch = run.batch(index)
            predictions = [labels(scored.scores(batch)[0]) for scored in runs.values()]
            for thing in kept:
                own = numbered == thing.number
                found = tuple(float((prediction[own] == thing.label).mean()) for prediction in predictions)
                cases.append(_Case(index, thing.label, float(own.mean()), found))
        if not cases:
            raise UserError(f"study.least={self.least}: no object of that size in the split; lower it")
        cases.sort(key=lambda case: case.share)
        self._draw(runs, cases[: self.pictures], directory / "small.png")
        self._draw(runs, cases[::-1][: self.pictures], directory / "large.png")
        bounds = [0.0, *self.edges, 1.0]
        table: list[Row] = []
        for low, high in pairwise(bounds):
            those = [case for case in cases if low < case.share <= high]
            name = f"{100 * low:g} to {100 * high:g} %"
            means = np.mean([case.found for case in those], 0).tolist() if those else [None] * len(runs)
            table.append({"share of the image": name, "objects": len(those)} | dict(zip(runs, means, strict=True)))
        series = {system: [row[system] and 100 * row[system] for row in table] for system in runs}
        names = [row["share of the image"] for row in table]
        title = "How much of an object is found, by its share of the image"
        charts.bar_chart(names, series, directory / "sizes.png", title, "mean share of the object's pixels found (%)")
        return table

    def _draw(self, runs: Runs, cases: Sequence[_Case], path: Path) -> None:
        run, rows, names = first_of(runs), [], []
        for case in cases:
            batch = run.batch(case.index)
            image = picture_of(batch["image"][0])
            predictions = [labels(scored.scores(batch)[0]) for scored in runs.values()]
            palette = run.legend.palette
            truth = viz.colour_mask(batch["mask"][0], palette)
            rows.append([image, truth, *(viz.overlay(image, prediction, palette) for prediction in predictions)])
            names.append(f"{run.classes[case.label]}, {100 * case.share:.1f} %")
        charts.page(rows, path, ["image", "truth", *runs], names, side=2.6)
