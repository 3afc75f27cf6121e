"""Gives up a job of a sweep that stays behind the others, after Optuna's median pruner."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L

from segmod.ground.errors import UserError
from segmod.ground.files import read_text
from segmod.ground.printing import read_csv
from segmod.ground.types import Amount, Count, Text

log = logging.getLogger(__name__)


class Prune(L.Callback):
    """Ends a training whose best metric so far is below the median of the others' by the same step.

    The others are the finished jobs of the same multirun; so a search one trial at a time decides alike each time.

    Args:
        sweep: Folder of the multirun; None gives up nothing.
        monitor: Metric to be maximised.
        jobs: Jobs that must have come as far before one is given up.
        validations: Validations that each job may have first.
    """

    def __init__(
        self, sweep: Text | None, monitor: Text = "val/miou", jobs: Count = 5, validations: Amount = 2
    ) -> None:
        self.sweep = sweep
        self.monitor = monitor
        self.jobs = jobs
        self.validations = validations
        self._scores: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """The metric of the validations so far."""
        return {"scores": self._scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._scores = state_dict["scores"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide, for all ranks."""
        if self.sweep is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._scores.append(float(trainer.callback_metrics[self.monitor]))
        if len(self._scores) > self.validations:
            others = self._others(trainer.global_step) if trainer.is_global_zero else []
            best = max((score for score in self._scores if not math.isnan(score)), default=0.0)
            behind = len(others) >= self.jobs and best < median(others)
            if trainer.strategy.broadcast(behind):
                trainer.should_stop = True
                if behind:
                    log.info("given up: %s %.4g is below %.4g, the median of %d jobs by step %d",
                             self.monitor, best, median(others), len(others), trainer.global_step)  # fmt: skip

    def _others(self, step: int) -> list[float]:
        """Best metric by a step of each finished job that came as far."""
        found = []
        for path in sorted(Path(self.sweep or "").glob("jobs/*.json")):
            row = json.loads(read_text(path))
            try:
                curve = read_csv(Path(row["folder"]) / "metrics.csv") if row["state"] == "finished" else []
            except UserError:  # damaged: one job less to compare with
                continue
            scores = [
                float(line[self.monitor]) for line in curve if line.get(self.monitor) and float(line["step"]) <= step
            ]
            if scores and any(float(line["step"]) >= step - 1 for line in curve):
                found.append(max(scores))
        return found
