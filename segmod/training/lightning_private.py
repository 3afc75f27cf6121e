"""What segmod uses of Lightning beyond its public names; they are checked here, once, when this is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from segmod.ground.errors import require_names

TESTED = ">=2.6,<2.7"
_LAUNCHERS = (
    "lightning.fabric.strategies.launchers.subprocess_script",
    "lightning.pytorch.strategies.launchers.subprocess_script",
)
NAMES = (
    *(f"{launcher}._hydra_subprocess_cmd" for launcher in _LAUNCHERS),
    "lightning.pytorch.loops._FitLoop._data_fetcher",
    "lightning.pytorch.loops._FitLoop._load_combined_loader_states",
    "lightning.pytorch.loops._TrainingEpochLoop._should_accumulate",
    "lightning.pytorch.loops._TrainingEpochLoop._should_check_val_fx",
    "lightning.pytorch.Trainer._signal_connector",
    "lightning.pytorch.callbacks.RichProgressBar._get_train_description",  # `segmod.training.progress` has its own
    "lightning.pytorch.loggers.WandbLogger._experiment",  # the W&B run that the logger's own methods log to
    "lightning.pytorch.loggers.WandbLogger._wandb_init",
)
require_names("lightning", TESTED, NAMES)


def start_ranks_by(command: Callable[[int], tuple[Sequence[str], str]]) -> None:
    """Start the further processes of a multi-device run by another command than ``sys.argv`` once more.

    Args:
        command: Maps a local rank to the words of a command and its working directory.
    """
    for launcher in _LAUNCHERS:
        setattr(import_module(launcher), "_hydra_subprocess_cmd", command)  # noqa: B010 (no attribute mypy knows)


def load_loader_states(trainer: L.Trainer) -> None:
    """Give the training loader its place in the epoch, from the checkpoint that is being resumed."""
    trainer.fit_loop._load_combined_loader_states()


def half_accumulated(trainer: L.Trainer) -> bool:
    """Whether gradients of the batches so far wait for those of the next one."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def mid_epoch(trainer: L.Trainer) -> bool:
    """Whether the training batch that has just ended is followed by another one, and not by a validation."""
    loop = trainer.fit_loop
    validates = loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    return not (validates or loop.epoch_loop.batch_progress.is_last_batch)


def forget_sigterm(trainer: L.Trainer) -> None:
    """Make the trainer go on after a SIGTERM that somebody else will heed."""
    trainer._signal_connector.received_sigterm = False


def wandb_arguments(logger: WandbLogger) -> dict[str, Any]:
    """The arguments of ``wandb.init`` that a logger was given, without those left open."""
    return {key: value for key, value in logger._wandb_init.items() if value is not None}
