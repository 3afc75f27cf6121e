"""What Weights & Biases shows beside the curves: IoU by class, confusion, and predictions to click through."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from segmod.ground.types import IGNORE_INDEX, Amount
from segmod.metrics import summarise
from segmod.training.loggers import attempt
from segmod.training.pictures import Example, examples


class WandbPanels(L.Callback):
    """Fills the panels of a W&B run at each validation; without a W&B logger it does nothing.

    Logged: IoU of each class as curves, table and bar chart, the confusion matrix in percent of the truth, the first
    validation images with prediction and truth as masks that can be switched on and off; once, the facts of the
    machine. What fails in W&B is a warning and does not stop the training.

    Args:
        pictures: Validation images to send; 0 for none.
    """

    def __init__(self, pictures: Amount = 4) -> None:
        self.pictures = pictures
        self._examples: list[Example] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the machine."""
        logger = _logger(trainer)
        if logger is not None:
            facts = {"system": system_facts(trainer)}
            attempt("W&B", lambda: logger.experiment.config.update(facts, allow_val_change=True))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the pictures of the last validation."""
        self._examples.clear()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the images of this batch that are to be shown."""
        if _logger(trainer) is not None and not trainer.sanity_checking:
            self._examples += examples(outputs, batch, self.pictures)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send the panels."""
        logger = _logger(trainer)
        if logger is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            # in the row of the metrics, which Lightning has just logged
            attempt("W&B", lambda: logger.log_metrics(self._panels(trainer, pl_module)))

    def _panels(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        classes: tuple[str, ...] = trainer.datamodule.legend.classes  # type: ignore[attr-defined]
        confusion: Any = pl_module.confusion
        panels = iou_panels(confusion, classes) | {"val/confusion": confusion_panel(confusion, classes)}
        if self._examples:
            panels["val/pictures"] = [picture_panel(example, classes) for example in self._examples]
        return panels


def log_evaluation(
    logger: WandbLogger, facts: dict[str, Any], confusion: Tensor, classes: tuple[str, ...], pictures: Sequence[Path]
) -> None:
    """Log an evaluation: its record, metrics and pictures, and the panels of a validation; a failure is a warning."""

    def log() -> None:
        import wandb

        logger.log_hyperparams({key: value for key, value in facts.items() if key not in ("metrics", "iou")})
        panels = iou_panels(confusion, classes) | {"val/confusion": confusion_panel(confusion, classes)}
        if pictures:
            panels["val/pictures"] = [wandb.Image(str(path), caption=path.stem) for path in pictures]
        logger.log_metrics({**facts["metrics"], **panels}, 0)
        logger.finalize("success")

    attempt("W&B", log)


def iou_panels(confusion: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """IoU of each class in percent: a curve each, a table, a bar chart. Undefined ones are left out of the charts."""
    import wandb

    iou = dict(zip(classes, summarise(confusion).iou, strict=True))
    percent = {name: 100 * value for name, value in iou.items() if value is not None}
    table = wandb.Table(columns=["class", "IoU"], data=[[name, percent.get(name)] for name in classes])
    bars = wandb.Table(columns=["class", "IoU"], data=[list(row) for row in percent.items()])
    return {f"val/iou/{name}": value / 100 for name, value in percent.items()} | {
        "val/iou_table": table,
        "val/iou_chart": wandb.plot.bar(bars, "class", "IoU", title="IoU by class (%)"),
    }


def confusion_panel(confusion: Tensor, classes: tuple[str, ...]) -> Any:
    """Interactive confusion matrix, in percent of the pixels of the true class; classes without truth are left out."""
    import wandb

    share = 100 * confusion.cpu().double() / confusion.cpu().sum(1, keepdim=True)
    rows = [
        [classes[i], classes[j], round(float(share[i, j]), 2)]
        for i in range(len(classes))
        if confusion[i].sum() > 0
        for j in range(len(classes))
    ]
    # The chart of wandb.plot.confusion_matrix, which itself would want a list of all pixels.
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
        fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        string_fields={"title": "Confusion (% of the true class)"},
    )


def picture_panel(example: Example, classes: tuple[str, ...]) -> Any:
    """Image with its prediction and truth as masks."""
    import wandb

    names = {**dict(enumerate(classes)), IGNORE_INDEX: "void"}
    masks = {"prediction": {"mask_data": example.prediction, "class_labels": names}}
    if example.truth is not None:
        masks["truth"] = {"mask_data": example.truth, "class_labels": names}
    return wandb.Image(example.image, masks=masks, caption=example.name)


def system_facts(trainer: L.Trainer) -> dict[str, Any]:
    """What the run runs on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "device": str(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "gpus": gpus,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
    }


def _logger(trainer: L.Trainer) -> WandbLogger | None:
    """The W&B logger, on rank 0 alone."""
    loggers = (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
    return next(loggers, None) if trainer.is_global_zero else None
