"""Loggers that survive what long runs meet: resuming, several jobs in one process, and no network."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

from segmod.ground.errors import UserError, behind, reason
from segmod.ground.printing import damaged, read_csv, write_csv
from segmod.ground.types import Positive
from segmod.training.lightning_private import wandb_arguments


class CSVLogger(Logger):
    """Curves as ``<save_dir>/metrics.csv``, one row a step.

    Lightning's own CSV logger deletes the file when a run is resumed. This one keeps the rows before the step the
    resumed run goes on from, so that the file reads as if nothing had happened.

    Args:
        save_dir: Directory of the run.
        seconds: The file is written anew where it is older than this, and after each validation.
    """

    def __init__(self, save_dir: str, seconds: Positive = 5.0) -> None:
        super().__init__()
        self._path = Path(save_dir) / "metrics.csv"
        self._seconds = seconds
        self._written = time.monotonic()
        self._rows: dict[int, dict[str, Any]] | None = None  # by step; None until the first metrics come
        self._unsaved = False

    @property
    def name(self) -> str:
        """Name of the logger's folder: none, the file lies in the run directory itself."""
        return ""

    @property
    def version(self) -> str:
        """Version of the logger's folder: none."""
        return ""

    @property
    def save_dir(self) -> str:
        """Directory of the run."""
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Read what lies there, so that a damaged file is told before any step; ``.hydra/config.yaml`` is the record.

        Raises:
            UserError: The file is damaged.
        """
        _ = self._before

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of their step.

        Args:
            metrics: Values by name.
            step: Optimiser steps taken so far; null adds to the newest row.
        """
        if self._rows is None:
            self._rows = {number: row for number, row in self._before.items() if step is not None and number < step}
        step = step if step is not None else max(self._rows, default=0)
        self._rows.setdefault(step, {"step": step}).update({key: float(value) for key, value in metrics.items()})
        self._unsaved = True
        if any(key.startswith("val/") for key in metrics):
            self.send()

    @rank_zero_only
    def save(self) -> None:
        """Write the file if it is old; Lightning calls this after whatever it logs."""
        if time.monotonic() - self._written >= self._seconds:
            self.send()

    @rank_zero_only
    def send(self) -> None:
        """Write the file now; a reader sees the old or the new one, never half of it."""
        if not self._unsaved or self._rows is None:
            return
        columns = sorted({key for row in self._rows.values() for key in row} - {"step", "epoch"})
        header = ["step", "epoch", *columns]
        rows = [[self._rows[step].get(key, "") for key in header] for step in sorted(self._rows)]
        write_csv(self._path, [header, *rows])
        self._unsaved, self._written = False, time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, however the run ended."""
        self.send()

    @cached_property
    def _before(self) -> dict[int, dict[str, Any]]:
        """Rows of an earlier process by their step."""
        rows = read_csv(self._path)
        try:
            return {int(row["step"]): {key: value for key, value in row.items() if value} for row in rows}
        except (KeyError, ValueError) as error:
            raise damaged(self._path, error) from error


class WandbLogger(LightningWandbLogger):
    """Weights & Biases, offline by default, one W&B run for each job, and never a reason for training to stop.

    The id is a function of the run directory, so a resumed run goes on with its own curves (`wandb sync` joins the
    parts of an interrupted offline run by it). A W&B run that another job of the same process left open is finished
    first: Lightning's own logger would log into it. A start that fails (no login, no network) falls back to an offline
    run, a failing offline run to none at all, each with one warning.

    Args:
        save_dir: Directory of the run.
        runs: Root directory of the runs; the W&B run is called after ``save_dir`` below it.
        offline: True, false, or None for what the environment variable WANDB_MODE says, offline where it says nothing.
        log_model: Keep the checkpoint that a run is scored by as an artifact, too.
        **kwargs: Further arguments of ``wandb.init``: project, group, job_type, entity, tags, ...
    """

    def __init__(
        self,
        save_dir: str,
        runs: str = "runs",
        offline: bool | None = None,
        log_model: bool = False,
        **kwargs: Any,
    ) -> None:
        name = Path(os.path.relpath(save_dir, runs)).as_posix()
        id = hashlib.sha256(os.path.abspath(save_dir).encode()).hexdigest()[:12]
        mode = {True: "offline", False: "online", None: os.environ.get("WANDB_MODE", "offline")}[offline]
        # Lightning's own `offline=True` would write WANDB_MODE for all later jobs of the process.
        super().__init__(name=name, save_dir=save_dir, id=id, mode=mode, **kwargs)
        self._keeps_model = log_model
        self._step: int | None = None  # of the row that is being filled
        self._unsent = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first use; a disabled one where W&B cannot start."""
        import wandb

        if self._experiment is None:
            if wandb.run is not None:
                wandb.finish()
            Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # else W&B would write elsewhere
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        arguments = wandb_arguments(self)
        arguments["settings"] = wandb.Settings(init_timeout=30, silent=True)
        try:
            if arguments["mode"] == "online" and not wandb.login(prompt=False):
                raise PermissionError("nobody is logged in; `wandb login` does it")
            run = wandb.init(**arguments)
        except Exception as error:
            _warn(f"W&B: {reason(error)}: recording offline, `wandb sync` uploads it later")
            try:
                run = wandb.init(**{**arguments, "mode": "offline"})
            except Exception as second_error:
                _warn(f"W&B: {reason(second_error)}: this run goes on without W&B")
                run = wandb.init(mode="disabled")
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, those of a step as one row; a failure is a warning.

        Args:
            metrics: Values by name.
            step: Optimiser steps taken so far; None adds to the newest row.
        """
        attempt("W&B", lambda: self._add(metrics, step))

    def _add(self, metrics: Mapping[str, Any], step: int | None) -> None:
        if step not in (None, self._step):
            self._send()
            self._step = step
        at = {} if self._step is None else {"trainer/global_step": self._step}
        self.experiment.log({**metrics, **at}, commit=False)
        self._unsent = True

    def _send(self) -> None:
        if self._unsent:
            self._unsent = False
            self.experiment.log({}, commit=True)

    @rank_zero_only
    def send(self) -> None:
        """Send the row that is being filled; ``save``, which Lightning calls after whatever it logs, does not."""
        attempt("W&B", self._send)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left, however the run ended."""
        self.send()

    @rank_zero_only
    def log_result(self, metrics: Mapping[str, float | None], checkpoint: Path) -> None:
        """Summarise a finished run by the scores of its chosen checkpoint, and keep that where asked to."""
        attempt("W&B", lambda: self._log_result(metrics, checkpoint))

    def _log_result(self, metrics: Mapping[str, float | None], checkpoint: Path) -> None:
        import wandb

        self.experiment.summary.update({f"chosen/{name}": value for name, value in metrics.items()})
        if self._keeps_model:
            artifact = wandb.Artifact(f"model-{self.version}", "model", metadata=dict(metrics))
            artifact.add_file(str(checkpoint), checkpoint.name)
            self.experiment.log_artifact(artifact)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the config; a failure is a warning."""
        attempt("W&B", lambda: super(WandbLogger, self).log_hyperparams(params))


class TensorBoardLogger(LightningTensorBoardLogger):
    """TensorBoard's files in ``<save_dir>/tensorboard``; once they cannot be written, a warning and no more of them.

    Args:
        save_dir: Directory of the run.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str) -> None:
        try:
            super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)
            self._writes = True
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard: TensorBoard is not here; pip install tensorboard") from error

    def attempt(self, action: Callable[[], object]) -> None:
        """Write something, unless that has failed before, for what has failed may hang the next time."""
        self._writes = self._writes and attempt("TensorBoard", action)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics."""
        self.attempt(lambda: super(TensorBoardLogger, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log the config."""
        self.attempt(lambda: super(TensorBoardLogger, self).log_hyperparams(*args, **kwargs))

    @rank_zero_only
    def save(self) -> None:
        """Write what is left."""
        self.attempt(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, and close the files."""
        self.attempt(lambda: super(TensorBoardLogger, self).finalize(status))


def attempt(what: str, action: Callable[[], object]) -> bool:
    """Do something that a run can do without; where it fails, warn and go on.

    Args:
        what: What is then missing, such as ``W&B``.
        action: What to do.

    Returns:
        Whether it was done.
    """
    try:
        action()
    except Exception as error:
        cause = behind(error)
        told = cause.strerror if cause else None
        _warn(f"{what}: {told or f'{type(error).__name__}: {reason(error)}'}")
        return False
    return True


def _warn(message: str) -> None:
    # One text in one place: Python shows a repeated warning once.
    warnings.warn(message, stacklevel=2)
