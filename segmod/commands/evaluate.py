"""``segmod-evaluate``: score a trained run at full resolution; tables, pictures, and a submission if asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, LambdaCallback, RichProgressBar
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from segmod import charts, viz
from segmod.data.sbd import SBD_SPLITS
from segmod.ground.errors import UserError
from segmod.ground.files import require_writable, writing
from segmod.ground.palettes import VOC_CLASSES
from segmod.ground.printing import print_table, short_path, write_csv
from segmod.inference.submission import Submission
from segmod.metrics import mean_iou, present_classes, summarise
from segmod.runs import cli
from segmod.runs.instantiate import instantiate, loggers
from segmod.runs.launch import is_leader, prepare_lightning
from segmod.runs.ranks import watched
from segmod.runs.records import metrics_of, record
from segmod.runs.trained import TrainedRun
from segmod.training.datamodule import SegmentationDataModule
from segmod.training.loggers import WandbLogger
from segmod.training.pictures import PredictionPictures
from segmod.training.wandb_panels import log_evaluation

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Score a run as the config says."""
    prepare_lightning()
    run = TrainedRun.open(
        cfg.run,
        cfg.runs,
        checkpoint=cfg.checkpoint,
        split=cfg.split,
        inference=cfg.get("inference"),
        proposals=cfg.get("proposals"),
        data=cfg.data,
        trust=cfg.trust,
    )
    directory = run.folder("evaluation", evaluation_name(run))
    cfg.run_dir = str(directory)
    require_writable(directory)

    module, datamodule = run.module, run.datamodule
    of_voc = run.classes == VOC_CLASSES
    wants_submission = run.split == "test" and of_voc if cfg.submission is None else cfg.submission
    submission = None
    if wants_submission:
        if not of_voc:
            raise UserError(f"submission=true: the VOC server takes its own classes, not those of {run.legend.data}")
        if run.config.data.get("eval_squash"):
            raise UserError("submission=true needs pictures of the images' own size: set data.eval_squash=false")
        train_split, year = str(run.config.data.train_split), getattr(datamodule.dataset, "year", 2012)
        submission = Submission(directory, run.split, year, competition(str(cfg.competition), train_split))
        if is_leader():
            with writing(submission.folder):
                submission.clear()

    started = time.monotonic()
    trainer = validate(cfg, run, directory, submission)
    if not trainer.is_global_zero:
        return
    if submission is not None:
        finish(submission, datamodule)
    if module.confusion is None or not int(module.confusion.sum()):
        if submission is None:
            raise UserError(f"split={run.split} has no truth to score: choose another split, or submission=true")
        log.info("split %s has no truth: no metrics", run.split)
        return
    result = record(
        directory,
        run.stored_config(),
        **metrics_of(module, run.classes),
        present=present(module.confusion, run.classes),
        data=run.legend.data,
        split=run.split,
        inference=inference_name(run),
        predictor=OmegaConf.to_container(run.config.inference, resolve=True),
        checkpoint=run.checkpoint.name,
        images=min(len(datamodule.val_dataset or ()), sum(trainer.num_val_batches) * trainer.world_size),
        precision=str(trainer.precision),
        wall_time_s=time.monotonic() - started,
    )
    write_tables(directory, module.confusion, run.classes, f"{run.name}, {directory.name}")
    print_scores(directory, module.confusion, run.classes, result)
    pictures = sorted((directory / "pictures").rglob("*.png"))
    for logger in loggers(cfg, "evaluate", run.name):
        if isinstance(logger, WandbLogger):
            log_evaluation(logger, result, module.confusion, tuple(run.classes), pictures)


def competition(name: str, train_split: str) -> str:
    """The competition to submit to.

    Raises:
        UserError: It forbids what was trained on.
    """
    if name == "comp5" and train_split in SBD_SPLITS:
        raise UserError(f"competition=comp5 is for VOC's own masks, the run saw SBD's ({train_split}): give comp6")
    return name


def inference_name(run: TrainedRun) -> str:
    """The chosen option of the group ``inference``; by the predictor's module where the choice is the run's."""
    choice = cli.choices().get("inference")
    return str(choice or str(OmegaConf.select(run.config, "inference._target_")).split(".")[-2:][0])


def evaluation_name(run: TrainedRun) -> str:
    """Folder of an evaluation: ``<inference>-<split>``, and what else was changed by hand."""
    groups = ("inference.", "inference@", "proposals", "checkpoint=", "data.", "trainer.")
    return cli.named_by_changes(f"{inference_name(run)}-{run.split}", groups)


def validate(cfg: DictConfig, run: TrainedRun, directory: Path, submission: Submission | None) -> Any:
    """Score every image of the split once, over all ranks; returns the trainer."""

    def export(trainer: Any, module: Any, labels: Tensor, batch: Any, *_: Any) -> None:
        assert submission is not None
        for name, mask in zip(batch["name"], labels, strict=True):
            viz.save_palette_png(mask, submission.path(name))

    callbacks: list[Callback] = [PredictionPictures(str(directory / "pictures"), cfg.pictures)]
    if submission is not None:
        callbacks.append(LambdaCallback(on_validation_batch_end=export))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(RichProgressBar())
    trainer = instantiate(cfg, "trainer", callbacks=callbacks, logger=False, enable_checkpointing=False)
    with watched(trainer, run.directory / "evaluation"):  # where ranks above 0 print
        trainer.validate(run.module, datamodule=run.datamodule, verbose=False)
        trainer.strategy.barrier()
    return trainer


def finish(submission: Submission, datamodule: SegmentationDataModule) -> None:
    """Check a submission against the images of its split, and pack it."""
    dataset = datamodule.val_dataset
    assert dataset is not None
    sizes = {}
    for index, name in enumerate(dataset.names):
        height, width = dataset.read(index)[0].shape[:2]
        sizes[name] = (height, width)
    submission.verify(sizes, len(VOC_CLASSES))
    log.info("submission  %s", short_path(submission.pack()))


def present(confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Mean IoU over the classes that the truth has, for sets that lack some; predictions of the others count there."""
    indices = present_classes(confusion)
    return {"classes": [classes[k] for k in indices], "miou": mean_iou(summarise(confusion).iou, indices)}


def write_tables(directory: Path, confusion: Tensor, classes: Sequence[str], title: str) -> None:
    """Write iou.csv, confusion.csv and the charts of both."""
    iou = summarise(confusion).iou
    lines: list[list[Any]] = [["class", "iou", "truth_pixels", "predicted_pixels", "correct_pixels"]]
    for k, name in enumerate(classes):
        counts = int(confusion[k].sum()), int(confusion[:, k].sum()), int(confusion[k, k])
        lines.append([name, "" if iou[k] is None else f"{iou[k]:.6f}", *counts])
    write_csv(directory / "iou.csv", lines)
    rows = [[name, *row] for name, row in zip(classes, confusion.tolist(), strict=True)]
    write_csv(directory / "confusion.csv", [["truth", *classes], *rows])
    charts.iou_chart(iou, classes, directory / "iou.png", title)
    charts.confusion_picture(confusion, classes, directory / "confusion.png")


def print_scores(directory: Path, confusion: Tensor, classes: Sequence[str], result: dict[str, Any]) -> None:
    """Print IoU and share of each class, the four metrics, and where things are."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    lines = [["class", "IoU %", "accuracy %", "share of pixels %"]]
    pixels = confusion.double().sum(1)
    for k, name in enumerate(classes):
        accuracy = float(confusion[k, k] / pixels[k]) if pixels[k] else None
        shares = result["iou"][name], accuracy, float(pixels[k] / pixels.sum())
        lines.append([name, *map(percent, shares)])
    console = print_table(f"{directory.name}: {result['images']} images, {result['checkpoint']}", lines)
    console.print("  ".join(f"{k.removeprefix('val/')} {percent(v)} %" for k, v in result["metrics"].items()))
    if len(result["present"]["classes"]) < len(classes):
        count = len(result["present"]["classes"])
        console.print(f"miou of the {count} classes in the truth {percent(result['present']['miou'])} %")
    console.print(f"metrics, tables and pictures in {short_path(directory)}", soft_wrap=True)
