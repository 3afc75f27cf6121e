"""``segmod-train``: train a net, score it, record the result; resume where an earlier call was cut off."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelSummary, ProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from segmod.ground.errors import UserError
from segmod.ground.printing import short_path
from segmod.inference.dense import DensePredictor
from segmod.runs import cli
from segmod.runs.claim import claim, clear, own_run
from segmod.runs.folders import Run, predecessor
from segmod.runs.instantiate import instantiate, loggers, settle_classes
from segmod.runs.launch import is_leader, prepare_lightning
from segmod.runs.length import finished
from segmod.runs.ranks import watched
from segmod.runs.records import metrics_of, record
from segmod.training.checkpoints import AtomicCheckpointIO, Checkpoints, StopOnSignal, monitors_are_logged
from segmod.training.datamodule import SegmentationDataModule
from segmod.training.lightning_private import name_checkpoint
from segmod.training.loggers import WandbLogger
from segmod.training.module import SegmentationModule

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> float | None:
    """Train as the config says; returns val/miou, for sweepers that optimise."""
    resolve(cfg)
    run = own_run(cfg)
    result = None if cfg.overwrite else finished(run, cfg)
    if result is not None:
        if cfg.data.get("verify"):
            instantiate(cfg, "data").prepare_data()
        log.info("%s is finished; overwrite=true starts it anew", run.directory)
    else:
        result = fit(cfg, run)
    if is_leader():
        print_result(run, result)
    miou: float | None = result["metrics"].get("val/miou")
    return miou


def resolve(cfg: DictConfig) -> None:
    """Replace the keys that only Hydra can resolve, or the data, and ``init_from`` by the checkpoint it names."""
    cfg.name = cfg.name
    cfg.run_dir = os.path.abspath(cfg.run_dir)  # links stay links, which overwrite=true must see
    settle_classes(cfg)
    settle_colours(cfg)
    if cfg.init_from is not None:
        path = predecessor(str(cfg.init_from), cfg, cli.overrides(), cli.choices())
        cfg.init_from = str(path.resolve())


def settle_colours(cfg: DictConfig) -> None:
    """Give numbers for ``model.net.normalise=measured``: those that this run began with, or what the images have."""
    if OmegaConf.select(cfg, "model.net.normalise") != "measured":
        return
    run = Run(Path(cfg.run_dir))
    begun = run.config_file.is_file() and not cfg.overwrite
    stored = OmegaConf.select(run.config(), "model.net.normalise") if begun else None
    if not OmegaConf.is_dict(stored):
        stored = instantiate(cfg, "data").measured_colours()
        log.info("model.net.normalise: mean %s, std %s", stored["mean"], stored["std"])
    cfg.model.net.normalise = stored


def fit(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Train and score one run; returns the contents of its metrics.json."""
    prepare_lightning()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    images: SegmentationDataModule = instantiate(cfg, "data")
    module: SegmentationModule = instantiate(cfg, "model")
    datamodule: Any = module.adapt(images.for_training())
    if images.crops is not None:
        module.predictor = DensePredictor()  # a crop is scored as it is; `inference` is for whole images
    trainer, checkpoints = make_trainer(cfg)
    check_disk(run.directory, module)
    # now that all is built, and before further ranks look at the folder
    with claim(run, cfg) as is_new, watched(trainer, run.directory):
        try:
            train_net(cfg, run, module, datamodule, trainer, checkpoints)
        except UserError:  # of the data, which are opened now
            if is_new and not trainer.global_step:
                clear(run)
            raise
        return score(cfg, run, module, datamodule, trainer, checkpoints, images)


def train_net(
    cfg: DictConfig,
    run: Run,
    module: SegmentationModule,
    datamodule: L.LightningDataModule,
    trainer: L.Trainer,
    checkpoints: Checkpoints,
) -> None:
    """Train from the start, or from where the run was cut off."""
    resumed = checkpoints.last if checkpoints.last.is_file() and not cfg.overwrite else None
    if trainer.is_global_zero:
        weights = OmegaConf.select(cfg, "model.net.weights")
        start = f"init_from={cfg.init_from}" if cfg.init_from else f"model.net.weights={weights or 'null: random'}"
        log.info("%s %s", "resuming" if resumed else f"{start}, training", resumed or short_path(run.directory))
    if trainer.world_size > 1 and trainer.is_global_zero:
        log.info("ranks above 0 print to %s", run.directory / "rank*.log")
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    trainer.ckpt_path = resumed  # an argument of `fit` would be known only after the modules' `setup`
    try:
        trainer.fit(module, datamodule=datamodule, weights_only=True)
    except (ValueError, UserError) as error:  # known once the data are open
        if "val_check_interval" not in str(error):
            raise
        raise UserError(
            f"trainer.val_check_interval={cfg.trainer.val_check_interval}: longer than an epoch; lower it, or count "
            "batches over epochs: trainer.check_val_every_n_epoch=null"
        ) from error
    trainer.ckpt_path = None


def score(
    cfg: DictConfig,
    run: Run,
    module: SegmentationModule,
    datamodule: Any,
    trainer: L.Trainer,
    checkpoints: Checkpoints,
    images: SegmentationDataModule,
) -> dict[str, Any]:
    """Score the chosen checkpoint and record the run as finished; returns the contents of its metrics.json."""
    wall_time = checkpoints.wall_time
    which = run.checkpoint(cfg.checkpoint)
    watching = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    step = checkpoints.best_step if which == checkpoints.best else trainer.global_step
    if (
        module.confusion is None or checkpoints.validated_step != step
    ):  # else the last validation was of these very weights
        trainer.loggers = []  # the curves end with the training
        trainer.validate(module, datamodule=datamodule, ckpt_path=which, verbose=False, weights_only=True)
    trainer.strategy.barrier()
    if module.confusion is None:
        raise UserError(f"no image was validated: data.{cfg.data.get('val_split')} is empty or limit_val_batches is 0")
    result: dict[str, Any] = metrics_of(module, images.legend.classes)
    if images.crops is not None:
        result["inference"] = "crops"
    if trainer.is_global_zero:
        result = record(
            run.directory,
            cfg,
            **result,
            data=images.legend.data,
            split=getattr(datamodule, "scored_on", cfg.data.get("val_split", "val")),
            images=validated_images(trainer, datamodule),
            checkpoint=which.name,
            step=step,
            parameters=sum(p.numel() for p in module.net.parameters()),
            wall_time_s=wall_time,
            overrides=cli.overrides(),
        )
        for logger in watching:
            logger.log_result(result["metrics"], which)
    return result


def make_trainer(cfg: DictConfig) -> tuple[L.Trainer, Checkpoints]:
    """The trainer of a run, and the callback that keeps its checkpoints."""
    callbacks = [instantiate(cfg, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node is not None]
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None)
    if checkpoints is None:
        checkpoints = Checkpoints(str(Path(cfg.run_dir) / "checkpoints"))
    watch = LambdaCallback(on_validation_end=monitors_are_logged)  # before the callbacks that would fail without
    callbacks = [watch, *(c for c in callbacks if c is not checkpoints), checkpoints, StopOnSignal(checkpoints)]
    for kind, wanted in ((ProgressBar, "enable_progress_bar"), (ModelSummary, "enable_model_summary")):
        if not cfg.trainer[wanted]:
            callbacks = [c for c in callbacks if not isinstance(c, kind)]
    devices = cfg.trainer.devices
    on_cpu = cfg.trainer.accelerator == "cpu" or (cfg.trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and isinstance(devices, int) and devices > (os.cpu_count() or 1):
        raise UserError(f"trainer.devices={devices}: this machine has {os.cpu_count()} CPU cores; one process a core")
    trainer: L.Trainer = instantiate(
        cfg,
        "trainer",
        callbacks=callbacks,
        logger=loggers(cfg, "train", str(cli.choices().get("sweep") or cfg.name)),
        enable_checkpointing=False,  # segmod's own Checkpoints callback does it
        plugins=[AtomicCheckpointIO()],
    )
    name_checkpoint(trainer)
    return trainer, checkpoints


def validated_images(trainer: L.Trainer, datamodule: Any) -> int:
    """Number of images, or crops, that a validation scores."""
    batches = int(trainer.num_val_batches[0]) * trainer.world_size  # unequal ranks round up
    loader: Any = trainer.val_dataloaders
    return min(len(datamodule.val_dataset), batches * int(loader.batch_size))


def check_disk(directory: Path, module: L.LightningModule) -> None:
    """Refuse to start where two checkpoints with optimiser state would not fit.

    Raises:
        UserError: Too little space is free.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    needed = 3 * 3 * weights  # last, best and one being written, each weights and up to two moments
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"runs={directory}: {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed for checkpoints: "
            "free some space or choose another runs=..."
        )


def print_result(run: Run, result: dict[str, Any]) -> None:
    """Print the result and where things are."""
    metrics = {k.removeprefix("val/"): v for k, v in result["metrics"].items() if v is not None}
    console = Console(stderr=True, highlight=False)
    console.print("  ".join(f"[bold]{k}[/] {100 * v:.2f} %" for k, v in metrics.items()))
    console.print(f"metrics   {run.metrics_file}", soft_wrap=True)
    if (run.directory / "pictures").is_dir():
        console.print(f"pictures  {run.directory / 'pictures'}", soft_wrap=True)
    console.print(f"next      segmod-evaluate run={short_path(run.directory)}", soft_wrap=True)
