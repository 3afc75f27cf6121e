"""What segmod uses of Lightning beyond its public names; they are checked here, once, when this is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from segmod.ground.errors import UserError, reason, require_names

TESTED = ">=2.6,<2.7"
_LAUNCHERS = (
    "lightning.fabric.strategies.launchers.subprocess_script",
    "lightning.pytorch.strategies.launchers.subprocess_script",
)
_SIGNALS = "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector"
NAMES = (
    *(
        f"{launcher}.{name}"
        for launcher in _LAUNCHERS
        for name in ("_hydra_subprocess_cmd", "_launch_process_observer")
    ),
    "lightning.pytorch.loops._Loop._restarting",
    "lightning.pytorch.loops._FitLoop._data_fetcher",
    "lightning.pytorch.loops._FitLoop._iteration_based_training",
    "lightning.pytorch.loops._FitLoop._load_combined_loader_states",
    "lightning.pytorch.loops._FitLoop.on_advance_end",
    "lightning.pytorch.loops._TrainingEpochLoop._is_training_done",
    "lightning.pytorch.loops._TrainingEpochLoop._should_accumulate",
    "lightning.pytorch.loops._TrainingEpochLoop._should_check_val_fx",
    "lightning.pytorch.loops._TrainingEpochLoop.on_advance_end",
    "lightning.pytorch.Trainer._checkpoint_connector",
    f"{_SIGNALS}.register_signal_handlers",
    "lightning.pytorch.callbacks.RichProgressBar._get_train_description",  # `segmod.training.progress` has its own
    "lightning.pytorch.loggers.WandbLogger._experiment",  # the W&B run that the logger's own methods log to
    "lightning.pytorch.loggers.WandbLogger._wandb_init",
)
require_names("lightning", TESTED, NAMES)


def start_ranks_by(command: Callable[[int], tuple[Sequence[str], str]]) -> None:
    """Start the further processes of a multi-device run by another command than ``sys.argv`` once more.

    They are watched by `segmod.runs.ranks`: Lightning would kill all without a word where one fails.

    Args:
        command: Maps a local rank to the words of a command and its working directory.
    """
    for launcher in _LAUNCHERS:
        setattr(import_module(launcher), "_hydra_subprocess_cmd", command)  # noqa: B010 (no attribute mypy knows)
        setattr(import_module(launcher), "_launch_process_observer", lambda processes: None)  # noqa: B010


def leave_signals_alone() -> None:
    """Let signals be heeded by `segmod.ground.signals` and `segmod.training.checkpoints.StopOnSignal` alone.

    Lightning's own handler broadcasts to all ranks, which blocks, and goes on until a batch ends.
    """
    setattr(resolve_name(_SIGNALS), "register_signal_handlers", lambda connector: None)  # noqa: B010


def add_hooks(trainer: L.Trainer) -> None:
    """Give callbacks two hooks that Lightning lacks, at which nothing is half done; to be called in ``on_fit_start``.

    ``on_train_batch_logged(trainer, pl_module)`` comes when the metrics of a batch are logged and the validation that
    was due after it is over, ``on_train_epoch_logged(trainer, pl_module)`` when the metrics of an epoch are logged, its
    early stopping is decided and its plateau schedule is stepped. Lightning's own last hooks come before all that.
    """
    for loop, hook in (
        (trainer.fit_loop.epoch_loop, "on_train_batch_logged"),
        (trainer.fit_loop, "on_train_epoch_logged"),
    ):
        setattr(loop, "on_advance_end", partial(_end_advance, trainer, loop, hook))  # noqa: B010 (a method, for mypy)


def _end_advance(trainer: Any, loop: Any, hook: str, *args: Any) -> None:
    type(loop).on_advance_end(loop, *args)
    for callback in trainer.callbacks:
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, trainer.lightning_module)


def name_checkpoint(trainer: L.Trainer) -> None:
    """Name the checkpoint in a line where what it holds does not fit the training, or is no state of one."""
    connector = trainer._checkpoint_connector
    for step in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, step, partial(_restore, connector, getattr(connector, step)))


def _restore(connector: Any, step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    try:
        step(*args, **kwargs)
        for part in ("loops", "callbacks", "optimizer_states", "lr_schedulers") if connector._ckpt_path else ():
            connector._loaded_checkpoint[part]  # Lightning goes on without some of them, and not where it was
    except Exception as error:
        if isinstance(error, UserError) or connector._ckpt_path is None:
            raise
        raise UserError(
            f"cannot go on from checkpoint {connector._ckpt_path} ({reason(error)}): it is damaged or of another net; "
            "delete it or set overwrite=true"
        ) from error


def resume_by_epochs(trainer: L.Trainer) -> None:
    """Let a training that ends after ``max_steps`` be resumed as one that ends after ``max_epochs``.

    Lightning would take an epoch that was over for one that was cut off, and give it another step. To be called in
    ``on_fit_start``, that is before the state of the loops is loaded.
    """
    setattr(trainer.fit_loop, "_iteration_based_training", lambda: False)  # noqa: B010 (a method, for mypy)


def finish_resuming(trainer: L.Trainer) -> None:
    """Do what Lightning leaves undone when it resumes in the middle of an epoch; to be called in ``on_train_start``.

    The loader has no place in the epoch yet where a schedule has asked for the length of the training before: it was
    then made too early. It starts at the first batch asked for, so now is early enough. And a plateau schedule would
    not be stepped at the end of the epoch.
    """
    trainer.fit_loop._load_combined_loader_states()
    trainer.fit_loop._restarting = False


def half_accumulated(trainer: L.Trainer) -> bool:
    """Whether gradients of the batches so far wait for those of the next one."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the training batch that has just ended is, or was, followed by a validation."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def epoch_ends(trainer: L.Trainer) -> bool:
    """Whether the training batch that has just ended is the last one of its epoch, or of the training."""
    return trainer.fit_loop.epoch_loop._is_training_done or trainer.should_stop


def wandb_arguments(logger: WandbLogger) -> dict[str, Any]:
    """The arguments of ``wandb.init`` that a logger was given, without those left open."""
    return {key: value for key, value in logger._wandb_init.items() if value is not None}
