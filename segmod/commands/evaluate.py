"""``segmod-evaluate``: score a trained run at full resolution; tables, pictures, and a submission if asked."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from segmod.commands.train import scores
from segmod.ground.errors import UserError
from segmod.ground.printing import short_path
from segmod.runs import cli
from segmod.runs import folders as runs
from segmod.runs.keys import readable

if TYPE_CHECKING:
    from torch import Tensor

    from segmod.inference.ensemble import TrainedPredictor
    from segmod.inference.submission import Submission
    from segmod.training.datamodule import SegmentationDataModule
    from segmod.training.module import SegmentationModule

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Score a run as the config says."""
    from segmod.inference.submission import Submission
    from segmod.runs.launch import prepare_lightning

    prepare_lightning()
    run = runs.find_run(str(cfg.run), str(cfg.runs))
    run_cfg = settle(cfg, run)
    split = str(run_cfg.data.val_split)
    directory = run.directory / "evaluation" / evaluation_name(run_cfg)
    cfg.run_dir = str(directory)

    module, datamodule, checkpoint = restore(run_cfg, run, cfg.checkpoint)
    wants_submission = split == "test" if cfg.submission is None else bool(cfg.submission)
    submission = Submission(directory, split, int(run_cfg.data.get("year", 2012))) if wants_submission else None
    if submission is not None and run_cfg.data.get("eval_squash"):
        raise UserError("submission=true needs pictures of the images' own size: set data.eval_squash=false")
    if submission is not None and runs.is_leader():
        submission.clear()

    started = time.monotonic()
    trainer = validate(cfg, module, datamodule, directory, submission)
    if not trainer.is_global_zero:
        return
    if submission is not None:
        finish(submission, datamodule)
    if module.confusion is None or not int(module.confusion.sum()):
        if submission is None:
            raise UserError(f"split={split} has no truth to score: choose another split, or submission=true")
        log.info("split %s has no truth: no metrics", split)
        return
    result = runs.record(
        directory,
        run.config(),
        **scores(module, datamodule),
        present=present(module.confusion, datamodule.classes),
        split=split,
        inference=inference_name(run_cfg),
        predictor=OmegaConf.to_container(run_cfg.inference, resolve=True),
        checkpoint=checkpoint.name,
        images=min(len(datamodule.val_dataset or ()), sum(trainer.num_val_batches) * trainer.world_size),
        precision=str(trainer.precision),
        wall_time_s=time.monotonic() - started,
    )
    write_tables(directory, module.confusion, datamodule.classes, f"{run_cfg.name}, {directory.name}")
    report(directory, module.confusion, datamodule.classes, result)


def settle(cfg: DictConfig, run: runs.Run) -> DictConfig:
    """The config of a run, with what this command line changes; null leaves a key as it is."""
    run_cfg = run.config()
    for group in ("inference", "proposals"):
        if cfg.get(group) is not None:
            run_cfg[group] = OmegaConf.to_container(cfg[group])
    if "proposals" not in run_cfg:  # a run of a version that knew none
        run_cfg.proposals = OmegaConf.load(cli.CONF_DIR / "proposals" / "edgeboxes.yaml")
    data = dict(cfg.get("data") or {}) | {"val_split": cfg.get("split")}
    for key, value in data.items():
        if value is not None:
            OmegaConf.update(run_cfg, f"data.{key}", value)
    if run_cfg.data.get("crops") is not None:
        run_cfg.data.crops = None  # whole images are scored, whatever the run trained on
        if not run_cfg.data.get("eval_squash"):
            run_cfg.data.squash = None  # that was the size of the crops
    if run_cfg.model.net.get("weights") is not None:
        run_cfg.model.net.weights = None  # the checkpoint brings all weights
    if run_cfg.get("inference") is not None:
        predictor = OmegaConf.to_container(run_cfg.inference)
        find_members(predictor, "inference", str(cfg.get("runs") or "runs"), run.directory.name)
        run_cfg.inference = predictor
    return run_cfg


def find_members(node: Any, key: str, root: str, seed: str) -> None:
    """Give each other run that an ensemble names (``_target_: ...trained``) by its folder, in place.

    So a mistake is told by its key before anything is loaded, and the record says which run it was. Of several seeds
    that of the run itself is taken.
    """
    if not isinstance(node, dict):
        return
    if node.get("_target_") == "segmod.commands.evaluate.trained" and node.get("run") is not None:
        node["run"] = str(runs.find_run(str(node["run"]), root, f"{key}.run", seed).directory)
    for name, value in node.items():
        find_members(value, f"{key}.{name}", root, seed)


def trained(run: str | None, root: str = "runs") -> TrainedPredictor | None:
    """The net of another run as a predictor, scored as that run validates; None for no run.

    Args:
        run: Its folder or name.
        root: Folder of the runs, where names are looked for.

    Raises:
        UserError: There is no such run, or it has no checkpoint.
    """
    from segmod.inference.dense import DensePredictor
    from segmod.inference.ensemble import TrainedPredictor
    from segmod.nets.checkpoint import load_net
    from segmod.runs.instantiate import instantiate

    if run is None:
        return None
    found = runs.find_run(run, root)
    run_cfg = settle(OmegaConf.create(), found)
    module = instantiate(run_cfg, "model")
    load_net(module.net, found.checkpoint(str(run_cfg.checkpoint)), strict=True)
    return TrainedPredictor(module.net, module.predictor or DensePredictor())


def restore(
    run_cfg: DictConfig, run: runs.Run, which: str | None
) -> tuple[SegmentationModule, SegmentationDataModule, Path]:
    """Module with a run's trained net, its datamodule, and the checkpoint the weights are from.

    Args:
        run_cfg: Config of the run, as `settle` returns it.
        run: The run.
        which: ``best``, ``last`` or a path; None for what the run's config says.

    Raises:
        UserError: There is no such checkpoint, or its weights are not exactly those of the net.
    """
    from segmod.nets.checkpoint import load_net
    from segmod.runs.instantiate import instantiate

    path = run.checkpoint(str(which or run_cfg.checkpoint))
    datamodule = instantiate(run_cfg, "data")
    module = instantiate(run_cfg, "model")
    load_net(module.net, path, strict=True)
    return module, datamodule, path


def inference_name(run_cfg: DictConfig) -> str:
    """The chosen option of the group ``inference``; by the predictor's module where the choice is the run's."""
    choice = cli.choices().get("inference")
    return str(choice or run_cfg.inference._target_.split(".")[-2])


def evaluation_name(run_cfg: DictConfig) -> str:
    """Folder of an evaluation: ``<inference>-<split>``, and what else was changed by hand."""
    groups = ("inference.", "inference@", "proposals", "checkpoint=", "data.", "trainer.")
    return named_by_changes(f"{inference_name(run_cfg)}-{run_cfg.data.val_split}", groups)


def named_by_changes(name: str, groups: tuple[str, ...]) -> str:
    """A folder's name and, after it, the overrides of this command line that begin with one of ``groups``."""
    changes = [override for override in cli.overrides() if override.lstrip("+").startswith(groups)]
    return "+".join(filter(None, [name, readable(changes, with_model_and_data=True)]))


def validate(
    cfg: DictConfig,
    module: SegmentationModule,
    datamodule: SegmentationDataModule,
    directory: Path,
    submission: Submission | None,
) -> Any:
    """Score every image of the split once, over all ranks; returns the trainer."""
    from lightning.pytorch.callbacks import Callback, LambdaCallback, RichProgressBar

    from segmod import viz
    from segmod.runs.instantiate import instantiate
    from segmod.training.pictures import PredictionPictures

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
    trainer.validate(module, datamodule=datamodule, verbose=False)
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
    submission.verify(sizes, datamodule.num_classes)
    log.info("submission  %s", short_path(submission.pack()))


def present(confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Mean IoU over the classes that the truth has, for sets that lack some; predictions of the others count there."""
    from segmod.metrics import mean_iou, present_classes, summarise

    indices = present_classes(confusion)
    return {"classes": [classes[k] for k in indices], "miou": mean_iou(summarise(confusion).iou, indices)}


def write_tables(directory: Path, confusion: Tensor, classes: Sequence[str], title: str) -> None:
    """Write iou.csv, confusion.csv and the charts of both."""
    from segmod import viz
    from segmod.metrics import summarise

    iou = summarise(confusion).iou
    with (directory / "iou.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou", "truth_pixels", "predicted_pixels", "correct_pixels"])
        for k, name in enumerate(classes):
            counts = int(confusion[k].sum()), int(confusion[:, k].sum()), int(confusion[k, k])
            writer.writerow([name, "" if iou[k] is None else f"{iou[k]:.6f}", *counts])
    with (directory / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["truth", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    viz.iou_chart(iou, classes, directory / "iou.png", title)
    viz.confusion_picture(confusion, classes, directory / "confusion.png")


def report(directory: Path, confusion: Tensor, classes: Sequence[str], result: dict[str, Any]) -> None:
    """Print IoU and share of each class, the four metrics, and where things are."""
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    table = Table(title=f"{directory.name}: {result['images']} images, {result['checkpoint']}")
    table.add_column("class")
    for heading in ("IoU %", "accuracy %", "share of pixels %"):
        table.add_column(heading, justify="right")
    pixels = confusion.double().sum(1)
    for k, name in enumerate(classes):
        accuracy = float(confusion[k, k] / pixels[k]) if pixels[k] else None
        table.add_row(name, percent(result["iou"][name]), percent(accuracy), percent(float(pixels[k] / pixels.sum())))
    console = Console(highlight=False)
    console.print(table)
    console.print("  ".join(f"[bold]{k.removeprefix('val/')}[/] {percent(v)} %" for k, v in result["metrics"].items()))
    if len(result["present"]["classes"]) < len(classes):
        count = len(result["present"]["classes"])
        console.print(f"[bold]miou[/] of the {count} classes in the truth {percent(result['present']['miou'])} %")
    console.print(f"metrics, tables and pictures in {short_path(directory)}", soft_wrap=True)
