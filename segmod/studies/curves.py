"""Curves of several trainings side by side (the report on hypercolumns, Figs. 7 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from segmod import charts
from segmod.ground.errors import UserError, require
from segmod.ground.printing import read_csv
from segmod.ground.types import Count
from segmod.studies.base import Row, Runs, at_least, first_of

_FRACTIONS = "val/"  # before the names of what lies in 0..1, and is drawn in percent


class Curves:
    """Draws metrics of any runs while they train, finished or not, from their ``metrics.csv``.

    By epochs a point is the mean over one, at its end: ``<metric>_epoch`` where that was logged, else over what was
    logged of ``<metric>``. By steps a point is the mean over a stretch, so that a line has ``points`` of them at most.
    A metric that no run has logged yet has no panel. The table has, for each run and metric, the first and last point,
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
        points: Count = 100,
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
        files = {name: run.directory / "metrics.csv" for name, run in runs.items()}
        for file in files.values():
            require(file.is_file(), f"{file}: cannot read the run's curves (no such file); give a run that logged some")
        logged = {name: read_csv(file) for name, file in files.items()}
        panels: dict[str, dict[str, charts.Curve]] = {}
        table: list[Row] = []
        for metric in self.metrics:
            percent = metric.startswith(_FRACTIONS)
            lines = {name: line for name, rows in logged.items() if (line := self._line(rows, metric))}
            if not lines:
                continue
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
        if not panels:
            known = sorted({key for rows in logged.values() for row in rows for key, value in row.items() if value})
            there = f"there are {', '.join(known)}"[:200] if known else "wait for the first"
            raise UserError(f"study.metrics={list(self.metrics)}: no run has logged them yet; {there}")
        charts.curves(panels, directory / "curves.png", self.by)
        return table

    def _line(self, rows: Sequence[dict[str, str]], metric: str) -> charts.Curve:
        """Points of one run."""
        if self.by == "epoch":
            ends: dict[float, float] = {}
            for key in (metric, f"{metric}_epoch"):
                logged = [row for row in rows if row.get(key)]
                for epoch, group in groupby(logged, key=lambda row: int(float(row["epoch"] or 0))):
                    ends[epoch + 1] = mean(float(row[key]) for row in group)
            return sorted(ends.items())
        found = [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric)]
        each = -(-len(found) // self.points)
        parts = [found[start : start + each] for start in range(0, len(found), each or 1)]
        return [(part[-1][0] + 1, mean(y for _, y in part)) for part in parts]
