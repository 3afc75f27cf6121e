"""How long a run is trained: the one part of a recipe that may change afterwards, so that a run can be trained on."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any, NamedTuple

from omegaconf import DictConfig

from segmod.ground.errors import UserError, require
from segmod.ground.printing import short_path
from segmod.runs.folders import Run
from segmod.runs.instantiate import instantiate
from segmod.training.checkpoints import progress

log = logging.getLogger(__name__)


class Length(NamedTuple):
    """Where a training ends, by what comes first; infinity for no end."""

    epochs: float
    steps: float

    @classmethod
    def of(cls, cfg: DictConfig) -> Length:
        """The length that a config asks for."""
        asked = (cfg.trainer.get("max_epochs"), cfg.trainer.get("max_steps"))
        return cls(*(math.inf if number in (None, -1) else number for number in asked))

    def __str__(self) -> str:
        """Such as ``trainer.max_epochs=2``."""
        given = (f"trainer.max_{name}={value}" for name, value in self._asdict().items() if value < math.inf)
        return " ".join(given) or "no end"


def finished(run: Run, cfg: DictConfig) -> dict[str, Any] | None:
    """The result of a run that is trained as long as the config says, else None.

    A longer training goes on where a shorter one ended, unless early stopping ended that. Of a run that is finished
    less may be asked: it is reported as it is.

    Raises:
        UserError: The schedule of the run depends on its length, or an unfinished run is longer already.
    """
    result = run.result()
    last = run.directory / "checkpoints" / "last.ckpt"
    if not (run.config_file.is_file() and last.is_file()):
        return result
    before, now = Length.of(run.config()), Length.of(cfg)
    if now == before:
        return result
    done = progress(last)
    longer = done.epochs < now.epochs and done.steps < now.steps and not done.stopped
    if result is not None and not longer:
        why = "early stopping ended it" if done.stopped else f"that is not less than {now}"
        log.info("%s is trained for %d epochs, %d steps; %s", run.directory, done.epochs, done.steps, why)
        return result
    require(
        done.epochs <= now.epochs and done.steps <= now.steps,
        f"{now}: {short_path(run.directory)} is trained for {done.epochs} epochs, {done.steps} steps already: give "
        "more, another name=..., or overwrite=true to start anew",
    )
    schedule = cfg.model.get("scheduler") and instantiate(cfg, "model.scheduler")
    takes = set(inspect.signature(schedule).parameters) - set(cfg.model.scheduler) if schedule else set()
    if {"total_steps", "T_max"} & takes:  # which the module fills in
        raise UserError(
            f"{now}: the rates of {short_path(run.directory)} run to the end of {before}, so it cannot go on: another "
            "name=... trains anew, with init_from=FOLDER from its net, and overwrite=true in its place"
        )
    log.info("%s, %d epochs and %d steps long, goes on to %s", run.directory, done.epochs, done.steps, now)
    if (run.directory / "evaluation").is_dir():
        log.warning("%s is of the net before: evaluate again", run.directory / "evaluation")
    return None
