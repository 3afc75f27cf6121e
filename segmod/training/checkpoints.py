"""Checkpoints that survive a crash at any moment, and signals that ask a run to stop."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from segmod.ground.errors import UserError, reason
from segmod.ground.files import open_file, remove_parts, replacing
from segmod.ground.signals import SIGNALS, Stopped
from segmod.ground.types import Amount, Text
from segmod.training.lightning_private import (
    add_hooks,
    epoch_ends,
    finish_resuming,
    half_accumulated,
    resume_by_epochs,
    validation_follows,
)
from segmod.training.loggers import CSVLogger, WandbLogger

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there whole; reads with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, flush to the disk, then rename: a reader sees the old file or the new one, never half of one.

        Raises:
            UserError: The file cannot be written (disk full, no permission); the old checkpoint is kept.
        """
        try:
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise UserError(
                f"cannot write checkpoint {path} ({reason(error)}): free some disk space, then run again"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load plain tensors and containers alone.

        Raises:
            UserError: The file is damaged.
        """
        try:
            with open_file(path):
                content = torch.load(path, map_location or (lambda storage, _: storage), weights_only=True)
            return dict(content)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise UserError(
                f"cannot read checkpoint {path} ({reason(error)}): delete it or set overwrite=true"
            ) from error


class Progress(NamedTuple):
    """How far a training is: epochs begun, optimiser steps, and whether something else than its length ended it."""

    epochs: int
    steps: int
    stopped: bool


def progress(path: Path) -> Progress:
    """How far the training is that a checkpoint is of.

    Raises:
        UserError: The file is damaged.
    """
    content = AtomicCheckpointIO().load_checkpoint(path)
    try:
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        stopped = content["callbacks"]["Checkpoints"].get("stopped", False)
        return Progress(int(epochs), int(content["global_step"]), bool(stopped))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged ({reason(error)}): delete it or set overwrite=true") from error


def monitors_are_logged(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Check after a validation that the metrics which callbacks and schedule go by are there.

    Raises:
        UserError: One is not; names its key.
    """
    asked = {
        f"callbacks.{re.sub('(?<!^)(?=[A-Z])', '_', type(callback).__name__).lower()}.monitor": callback.monitor
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if hasattr(callback, "monitor")
    }
    asked["model.scheduler_monitor"] = getattr(pl_module, "scheduler_monitor", None)
    for key, metric in asked.items():
        later = metric is None or str(metric).startswith("train/")
        if trainer.state.fn == "fit" and not later and metric not in trainer.callback_metrics:
            raise UserError(f"{key}={metric!r} is not logged; choose one of {sorted(trainer.callback_metrics)}")


class Checkpoints(L.Callback):
    """Keeps ``last.ckpt`` to resume from and ``best.ckpt`` by a validation metric; final weights are always validated.

    ``last.ckpt`` is written where nothing is half done: after whole optimiser steps whose metrics are logged, after
    validations, after epochs whose schedules are stepped; and at the end, when all is done. Lightning does not repeat a
    validation that was cut short, so where one is due the file is written only after it, and a run killed in a
    validation goes on from the file before. Half-accumulated gradients are never saved.

    Must come after the callbacks whose state it is to save.

    Args:
        directory: Where the files go.
        monitor: Metric to be maximised (or minimised) for ``best.ckpt``.
        mode: ``max`` or ``min``.
        every_n_steps: Optimiser steps between two writings of ``last.ckpt`` within an epoch; 0 for none.
    """

    def __init__(
        self,
        directory: Text,
        monitor: Text = "val/miou",
        mode: Literal["max", "min"] = "max",
        every_n_steps: Amount = 100,
    ) -> None:
        self.last = Path(directory) / "last.ckpt"
        self.best = Path(directory) / "best.ckpt"
        self.monitor = monitor
        self.mode = mode
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.best_step = 0
        self.elapsed = 0.0  # seconds of training in earlier runs of this run directory
        self._started = time.monotonic()
        self._saved_step = 0
        self._owed = False  # a validation came between two accumulated batches, and is not saved yet
        self._stopped = False  # early stopping or the like has ended the training
        self._metrics: dict[str, Tensor] = {}  # what was logged last before a resume, which schedules may ask for
        self.validated_step = -1  # optimiser steps before the last validation of this process

    @property
    def wall_time(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.elapsed + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to keep the right best checkpoint and the time."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "stopped": self._stopped,
            "wall_time": self.wall_time,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint was written."""
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self.elapsed = state_dict["wall_time"]
        self._stopped = state_dict.get("stopped", False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics that plateau schedules and early stopping may ask for before the next validation."""
        checkpoint["callback_metrics"] = dict(trainer.callback_metrics)
        checkpoint["ranks"] = trainer.world_size

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them out again."""
        self._metrics = checkpoint.get("callback_metrics", {})
        before, now = checkpoint.get("ranks", trainer.world_size), trainer.world_size
        if before != now and trainer.state.fn == "fit" and trainer.is_global_zero:
            log.warning(
                "%d processes go on where %d left off: each step sees the same images, but the loss is the mean "
                "over the pixels of each process, so the result is not that of an undisturbed run to the last bit",
                now,
                before,
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin anew; a checkpoint may then say otherwise."""
        self._stopped = False
        self._metrics = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what a crash left half-written here and in the folder of the run; train no more if all is trained."""
        if trainer.is_global_zero:
            for folder in (self.last.parent, trainer.default_root_dir):
                remove_parts(folder)
        add_hooks(trainer)
        resume_by_epochs(trainer)
        trainer.should_stop = self._stopped

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; give a resumed run its place in the epoch and its metrics."""
        finish_resuming(trainer)
        trainer.callback_metrics.update(self._metrics)
        self._started = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_logged(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.ckpt`` within an epoch, when its step has come."""
        due = self._owed or 0 < self.every_n_steps <= trainer.global_step - self._saved_step
        if due and not (half_accumulated(trainer) or validation_follows(trainer) or epoch_ends(trainer)):
            self.save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``best.ckpt`` if the metric has improved; within an epoch also ``last.ckpt``, which knows of it."""
        if trainer.state.fn != "fit":
            return
        monitors_are_logged(trainer, pl_module)
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics.get(self.monitor, torch.nan))
        sign = 1 if self.mode == "max" else -1
        if score == score and (self.best_score is None or sign * score > sign * self.best_score):
            self.best_score, self.best_step = score, trainer.global_step
            trainer.save_checkpoint(self.best)
        self.validated_step = trainer.global_step
        if half_accumulated(trainer):
            self._owed = True  # at the end of this step
        elif not epoch_ends(trainer):
            self.save_last(trainer)

    def on_train_epoch_logged(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.ckpt`` between two epochs; at the end, after validating weights that no validation has seen.

        This is not for ``on_train_end``, where a moving average has already replaced the weights that it is of.
        """
        if not trainer.fit_loop.done:
            self.save_last(trainer)
            return
        if self.validated_step < trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        self._stopped = trainer.should_stop
        self._write_last(trainer)

    def save_last(self, trainer: L.Trainer) -> None:
        """Write ``last.ckpt`` now, once a step; every rank must call it."""
        if trainer.global_step > self._saved_step or self._owed or not self.last.exists():
            self._write_last(trainer)

    def _write_last(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:  # a resumed run logs nothing anew that lies before
            logger.save()
            if isinstance(logger, CSVLogger | WandbLogger):
                logger.send()
        trainer.save_checkpoint(self.last)
        self._saved_step = trainer.global_step
        self._owed = False


class StopOnSignal(L.Callback):
    """On SIGTERM, SIGUSR1 (SLURM preemption), SIGHUP or Ctrl-C: finish the optimiser step, save, leave.

    Where a validation follows or runs it leaves at once: the ``last.ckpt`` from before it stands. A second Ctrl-C
    leaves at once, too. With several ranks a signal to any of them stops all at the same step, the next one that is
    logged or the last one of the epoch, and one that comes during a validation stops them after it.

    Args:
        checkpoints: Writes the state.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._signum = 0
        self._leaving = 0  # the signal that all ranks have agreed to heed at the end of this step
        self._step = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from the command, which would not wait for the end of the step."""
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum == signum == signal.SIGINT:
            raise Stopped(signum)
        self._signum = signum

    def _asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> int:
        """Signal that this or another rank has received, else 0."""
        if trainer.world_size == 1:
            return self._signum
        signum: Tensor = trainer.strategy.reduce(
            torch.tensor(float(self._signum), device=pl_module.device), reduce_op="max"
        )
        return int(signum)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Ask all ranks at the end of an optimiser step, several of them each ``log_every_n_steps``.

        Raises:
            Stopped: A signal has come, and a validation would follow.
        """
        if trainer.global_step == self._step:
            return  # between two accumulated batches
        self._step = trainer.global_step
        if trainer.world_size > 1 and self._step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        self._leaving = self._asked(trainer, pl_module)
        if self._leaving and validation_follows(trainer):
            raise Stopped(self._leaving)

    def on_train_batch_logged(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save and leave, within an epoch.

        Raises:
            Stopped: A signal has come.
        """
        if self._leaving and not epoch_ends(trainer):
            self.checkpoints.save_last(trainer)
            raise Stopped(self._leaving)

    def on_train_epoch_logged(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave after an epoch; `Checkpoints` has just saved.

        Raises:
            Stopped: A signal has come.
        """
        signum = self._asked(trainer, pl_module)
        if signum:
            raise Stopped(signum)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave a validation.

        Raises:
            Stopped: A signal has come.
        """
        if self._signum and trainer.state.fn == "fit" and trainer.world_size == 1:  # ranks have unequal batch counts
            raise Stopped(self._signum)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave after a validation within an epoch; `Checkpoints` has just saved.

        Raises:
            Stopped: A signal has come.
        """
        within = trainer.state.fn == "fit" and not trainer.sanity_checking and not epoch_ends(trainer)
        if within and not half_accumulated(trainer):
            signum = self._asked(trainer, pl_module)
            if signum:
                raise Stopped(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back.

        Raises:
            Stopped: A signal has come in the meantime.
        """
        self._give_back()
        signum = self._asked(trainer, pl_module)
        if signum:
            raise Stopped(signum)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._give_back()

    def _give_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
