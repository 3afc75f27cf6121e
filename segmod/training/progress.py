"""What a training tells on the terminal and in its log: its net and data before it starts, and how far it is."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar

from segmod.ground.printing import print_table

log = logging.getLogger(__name__)


class ProgressBar(RichProgressBar):
    """Lightning's bar, without a last epoch of -2 where ``trainer.max_steps`` alone says how long a training is."""

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1:
            return super()._get_train_description(current_epoch)
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))


class ModelSummary(RichModelSummary):
    """Modules of the net and their parameters; without FLOPs, which ``segmod-benchmark`` counts."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Print the table, and the sums below it."""
        columns = {heading: cells for heading, cells in summary_data if heading.strip() and heading != "FLOPs"}
        console = print_table("", [list(columns), *map(list, zip(*columns.values(), strict=True))])
        console.print(f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained; {model_size:.1f} MB")


class Lines(L.Callback):
    """Tells in a few lines what is trained on, and in one what each validation found, for logs that are followed."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell data, device and length."""
        self._started = time.monotonic()
        images: Any = trainer.datamodule  # type: ignore[attr-defined]
        told = [type(images).__name__]
        if hasattr(images, "legend"):
            told = [images.legend.data, f"{len(images.legend.classes)} classes"]
        for what in ("train", "val"):
            samples: Any = getattr(images, f"{what}_dataset", None)
            told += [f"{len(samples)} samples to {what}"] if hasattr(samples, "__len__") else []
        log.info("data      %s", ", ".join(told))
        devices = f"{trainer.world_size} processes on " if trainer.world_size > 1 else ""
        log.info("device    %s%s, %s", devices, trainer.strategy.root_device, trainer.precision)
        batch = getattr(images, "batch_size", None)
        log.info(
            "length    %s steps, %s an epoch%s; at step %d",
            trainer.estimated_stepping_batches,
            -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches),
            f", {batch} images a batch" if batch else "",
            trainer.global_step,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what was found."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        found = {
            "val/miou": f"{100 * float(trainer.callback_metrics.get('val/miou', float('nan'))):.2f} %",
            "loss": f"{float(getattr(pl_module, 'mean_loss', float('nan'))):.4f}",
            "time": str(timedelta(seconds=round(time.monotonic() - self._started))),
        }
        told = "  ".join(f"{name} {value}" for name, value in found.items())
        log.info("step %d  epoch %d  %s", trainer.global_step, trainer.current_epoch + 1, told)
