"""Curves of several trainings side by side (the report on hypercolumns, Figs. 7 and 8)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from segmod import viz
from segmod.ground.errors import UserError
from segmod.studies.base import Row, Runs, at_least, first_of

_FRACTIONS = "val/"  # before the names of what lies in 0..1, and is drawn in percent


class Curves:
    """Draws metrics of any runs while they train, finished or not, from their ``metrics.csv``.

    By epochs a point is the mean over what was logged in one, at its end. By steps a point is the mean over a stretch,
    so that a line has ``points`` of them at most. The table has, for each run and metric, the first and last point,
    the mean over all, and the best.

    Args:
        metrics: Columns of metrics.csv, one panel each.
        by: ``epoch`` or ``step``.
        points: Of a line, by steps.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("train/loss", "val/miou", "val/pixel_acc"),
        by: str = "epoch",
        points: int = 100,
    ) -> None:
        at_least(1, points=points)
        if by not in ("epoch", "step"):
            raise UserError(f"study.by={by}: choose epoch or step")
        self.metrics = metrics
        self.by = by
        self.points = points

    def __call__(self, runs: Runs, directory: Path) -> list[Row]:
        """Draw curves.png.

        Raises:
            UserError: A run has no curves, or none of the runs has one of these metrics.
        """
        first_of(runs)
        logged = {name: _read(run.directory / "metrics.csv") for name, run in runs.items()}
        panels: dict[str, dict[str, viz.Curve]] = {}
        table: list[Row] = []
        for metric in self.metrics:
            percent = metric.startswith(_FRACTIONS)
            lines = {name: line for name, rows in logged.items() if (line := self._line(rows, metric))}
            if not lines:
                known = sorted({key for rows in logged.values() for row in rows for key, value in row.items() if value})
                raise UserError(f"study.metrics: no run has logged '{metric}' yet; there are {', '.join(known)}"[:300])
            factor = 100 if percent else 1
            panels[f"{metric} (%)" if percent else metric] = {
                name: [(x, factor * y) for x, y in line] for name, line in lines.items()
            }
            for name, line in lines.items():
                values = [y for _, y in line]
                facts = values[0], values[-1], mean(values), max(values) if percent else min(values)
                told = facts if percent else [f"{value:.4g}" for value in facts]  # a fraction is shown in percent
                table.append(
                    {"metric": metric, "run": name, f"{self.by}s": f"{line[-1][0]:g}"}
                    | dict(zip(("first", "last", "mean", "best"), told, strict=True))
                )
        viz.curves(panels, directory / "curves.png", self.by)
        return table

    def _line(self, rows: Sequence[dict[str, str]], metric: str) -> viz.Curve:
        """Points of one run."""
        found = [(float(row["step"]), float(row["epoch"] or 0), float(row[metric])) for row in rows if row.get(metric)]
        if self.by == "epoch":
            groups = [list(group) for _, group in groupby(found, key=lambda point: int(point[1]))]
            return [(int(group[0][1]) + 1, mean(y for *_, y in group)) for group in groups]
        each = -(-len(found) // self.points)
        parts = [found[start : start + each] for start in range(0, len(found), each or 1)]
        return [(part[-1][0] + 1, mean(y for *_, y in part)) for part in parts]


def _read(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv, in the order of their steps."""
    try:
        return list(csv.DictReader(path.read_text().splitlines()))
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the run's curves ({error.strerror}); give a run that logged some"
        ) from error
