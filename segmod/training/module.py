"""The LightningModule that trains any net of segmod."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from segmod.ground.errors import UserError, cut
from segmod.ground.types import IGNORE_INDEX, Batch, Positive, Predictor, Text, labels_of
from segmod.inference.dense import DensePredictor
from segmod.losses import weigh_classes, weighted_parts
from segmod.metrics import SegmentationMetrics, summarise
from segmod.nets.weights import load_net
from segmod.optim import ParamRule, param_groups, scale_groups, watched

log = logging.getLogger(__name__)


# what torch says of images that are too small or too few for a net
_TOO_SMALL = {
    "more than 1 value per channel": "a batch norm gets one value a channel, from which it cannot learn: raise "
    "data.batch_size (accumulating does not help), or take larger images",
    "Kernel size can't be greater": "too small for this net: take larger images, data.squash or data.crop_size",
    "Output size is too small": "too small for this net: take larger images, data.squash or data.crop_size",
}


@contextmanager
def _small_images_told(batch: Batch) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        told = next((words for sign, words in _TOO_SMALL.items() if sign in str(error)), None)
        if told is None:
            raise
        raise UserError(f"batch {cut(str(list(batch.get('name', []))), 80)}: {told}") from error


class SegmentationModule(L.LightningModule):
    """Trains a net with a per-pixel loss and scores it as PASCAL VOC does.

    Override `compute_loss` for another loss of a batch, `predict_scores` for another way of scoring an image, `adapt`
    to train on something else than the images of the datamodule.

    Args:
        net: Maps image (B, 3, H, W) to logits (B, K, H, W).
        loss: Maps (logits, mask) to a scalar.
        optimizer: Takes parameter groups, returns an optimiser (``_partial_: true`` in the config).
        scheduler: Takes the optimiser, returns a schedule. Filled in where it takes them: ``total_steps`` (or
            ``T_max``) and ``steps_per_epoch``, counted in ``scheduler_interval``, and ``max_lr``, each group's rate.
        predictor: Scores whole images in validation; None for `DensePredictor`, one plain forward pass.
        param_rules: Learning-rate and decay multipliers by parameter name, first match wins.
        init_from: Checkpoint whose net weights to start from, where names and shapes agree.
        compile: Compile the net in place (state-dict keys stay as they are).
        channels_last: Keep image and weights in channels-last memory order.
        scheduler_monitor: Metric that a plateau schedule watches, such as ``val/pixel_acc``.
        scheduler_interval: Whether the schedule takes a step after each ``step`` of the optimiser or each ``epoch``;
            of a plateau schedule always an epoch.
        class_weights: Factors of the classes in the loss; ``auto`` has the datamodule count them when a training
            begins, and is resumed with what was counted, which the checkpoint keeps.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        predictor: Predictor | None = None,
        param_rules: Sequence[ParamRule] = (),
        init_from: Text | None = None,
        compile: bool = False,
        channels_last: bool = False,
        scheduler_monitor: Text | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        class_weights: Literal["auto"] | Sequence[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.predictor: Predictor = predictor or DensePredictor()
        self.param_rules = param_rules
        self.init_from = init_from
        self.compile_net = compile
        self.channels_last = channels_last
        self.scheduler_monitor = scheduler_monitor
        self.scheduler_interval = scheduler_interval
        self.class_weights = class_weights
        classes = int(net.num_classes)  # type: ignore[arg-type]
        weigh_classes(loss, [1.0] * classes if class_weights == "auto" else class_weights, classes)
        self.metrics = SegmentationMetrics(classes)
        self._epoch_loss = torch.zeros(())
        self._epoch_batches = 0
        self.confusion: Tensor | None = None  # (K, K), of the last validation, summed over all ranks
        self.further: dict[str, float | None] = {}  # more numbers of the last validation for metrics.json: val/<name>

    # -- override points ---------------------------------------------------------------------------------------------

    def compute_loss(self, batch: Batch) -> Tensor:
        """Loss of one training batch, a scalar; 0 where all pixels are void, for which torch's cross-entropy is NaN."""
        mask = batch["mask"]
        loss: Tensor = self.loss(self.net(batch["image"]), mask.long())
        return torch.where((mask != IGNORE_INDEX).any(), loss, 0.0)

    def predict_scores(self, batch: Batch) -> Tensor:
        """Class probabilities of whole images, float32 (B, K, H, W)."""
        return self.predictor(self.net, batch)

    def adapt(self, datamodule: L.LightningDataModule) -> L.LightningDataModule:
        """What this module trains on, made from the datamodule of the config; by default that datamodule itself."""
        return datamodule

    # -- Lightning ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Divide the net among the processes where the trainer's strategy asks for it."""
        if hasattr(self.trainer.strategy, "shard"):
            self.trainer.strategy.shard(self.net)

    def setup(self, stage: str) -> None:
        """Start from ``init_from`` unless a checkpoint of this run is being resumed; compile if asked."""
        if stage == "fit" and self.init_from is not None and self.trainer.ckpt_path is None:
            transfer = load_net(self.net, self.init_from)
            if self.trainer.is_global_zero:
                log.info("init_from %s: %s", self.init_from, transfer)
        if self.compile_net:
            self.net.compile()

    def on_fit_start(self) -> None:
        """Let one process count the classes, if asked; a run that is resumed has what was counted by now.

        Raises:
            UserError: What is trained on is no images whose pixels could be counted.
        """
        data: Any = getattr(self.trainer, "datamodule", None)  # None where a step is timed and no more
        if self.class_weights != "auto" or self.trainer.ckpt_path is not None or data is None:
            return
        if not hasattr(data, "balancing_weights"):
            raise UserError("data.class_weights=auto: this stage trains on no whole images; give a list, or null")
        first = self.trainer.is_global_zero
        found: dict[str, float] = self.trainer.strategy.broadcast(data.balancing_weights() if first else {})
        if first:
            log.info("data.class_weights: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in found.items()))
        for part in weighted_parts(self.loss):
            part.weight.copy_(torch.tensor([*found.values()]))  # type: ignore[operator]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bring the images into channels-last order if asked."""
        if self.channels_last and "image" in batch:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, epoch, batch, rank), so that a resumed run draws what it would have drawn."""
        if hasattr(self.net, "stream_rms") and self.global_step == batch_idx == 0 and self.trainer.is_global_zero:
            seen = self.net.stream_rms(batch["image"])  # type: ignore[operator]
            told = ", ".join(f"{name} {rms:.3g} ({channels})" for name, (rms, channels) in seen.items())
            log.info("rms (channels) of what the score layers see: %s", told)
        place = (int(os.environ.get("PL_GLOBAL_SEED", "0")), self.current_epoch, batch_idx, self.global_rank)
        seed = hash(place)  # of a tuple of ints: the same in every process
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, for half a millisecond
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the labels mean, so that the net can be used where its data are not, and the losses so far.

        Raises:
            UserError: A loss was not finite, and the weights are not worth keeping.
        """
        self._check_losses()
        legend = getattr(getattr(self.trainer, "datamodule", None), "legend", None)
        if legend is not None:
            checkpoint["legend"] = legend.as_plain()
        checkpoint["epoch_loss"] = {"sum": self._epoch_loss, "batches": self._epoch_batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the epoch's losses; an epoch that begins begins its own."""
        if "epoch_loss" in checkpoint:
            self._epoch_loss, self._epoch_batches = checkpoint["epoch_loss"].values()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; a loss that is not finite stops the run: before it spoils the weights on a CPU, else soon after.

        Raises:
            UserError: The loss is NaN or infinite, or the images are too small for the net or too few for its batch
                norm; names the images of the batch.
        """
        with _small_images_told(batch):
            loss = self.compute_loss(batch)
        self._epoch_loss += loss.detach()
        self._epoch_batches += 1
        # `log` takes up to a millisecond, and looking at a number on a GPU waits for it
        is_logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_logged or loss.device.type == "cpu":
            self._check_losses(f", batch {list(batch.get('name', []))}")
        if is_logged:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def on_train_start(self) -> None:
        """Bring a resumed sum to where the losses are."""
        self._epoch_loss = self._epoch_loss.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Begin the mean of the epoch's losses."""
        self._epoch_loss = torch.zeros((), device=self.device)
        self._epoch_batches = 0

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's batches, those of this rank."""
        self.log("train/loss_epoch", self.mean_loss, batch_size=1)

    @property
    def mean_loss(self) -> Tensor:
        """Mean loss of the batches of this epoch and this rank so far."""
        return self._epoch_loss / max(1, self._epoch_batches)

    def _check_losses(self, where: str = "") -> None:
        """Look at the losses of the epoch so far; one that is not finite leaves its mark on their sum.

        Raises:
            UserError: One was not.
        """
        total = float(self._epoch_loss)
        if not math.isfinite(total):
            raise UserError(
                f"the loss is {total} at step {self.global_step}{where}: "
                "lower model.optimizer.lr or look at these images; the last good checkpoint is kept"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count the pixels of one batch; returns its labels, int64 (B, H, W), for the callbacks."""
        with _small_images_told(batch):
            labels = labels_of(self.predict_scores(batch))
        self.metrics.update(labels, batch["mask"])
        return labels

    def on_validation_epoch_end(self) -> None:
        """Log the four metrics of Long et al. 2015 (sec. 5) over the whole set, each image counted once."""
        self.confusion = self.metrics.compute()
        self.metrics.reset()
        summary = summarise(self.confusion)
        values = {f"val/{name}": getattr(summary, name) for name in ("miou", "mean_acc", "pixel_acc", "fwiou")}
        self.log_dict({k: float("nan") if v is None else v for k, v in values.items()}, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser (fused where the device has it) and its schedule.

        Raises:
            UserError: The optimiser or schedule refuses a value of the config.
        """
        groups = param_groups(self.net, self.param_rules)
        if not groups:
            raise UserError("model: no parameter is trainable; look at model.param_rules and the net's freeze keys")
        try:
            optimizer = self.optimizer(groups, **self._fused())
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        scale_groups(optimizer)
        if self.scheduler is None:
            return optimizer
        try:
            schedule = self.scheduler(optimizer, **self._filled_in(optimizer))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"model.scheduler: {error}") from error
        config: dict[str, Any] = {"scheduler": schedule, "interval": self.scheduler_interval}
        if isinstance(schedule, ReduceLROnPlateau):
            config |= {"monitor": watched(schedule, self.scheduler_monitor), "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def _filled_in(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the schedule takes of the training's length and the optimiser's rates, and the config leaves open."""
        assert self.scheduler is not None
        takes = inspect.signature(self.scheduler).parameters
        given = getattr(self.scheduler, "keywords", {})
        steps_per_epoch = 1
        if "steps_per_epoch" in takes or self.scheduler_interval == "epoch":
            if self.trainer.num_training_batches == float("inf"):  # the loader has not been made yet
                self.trainer.fit_loop.setup_data()
            steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        found: dict[str, Any] = {"max_lr": [group["lr"] for group in optimizer.param_groups]}
        if {"total_steps", "T_max"} & set(takes):
            total = self.trainer.estimated_stepping_batches
            if not 0 < total < float("inf"):
                raise UserError("model.scheduler needs the length of the training: set trainer.max_steps or max_epochs")
            by_epoch = self.scheduler_interval == "epoch"
            found["total_steps"] = found["T_max"] = math.ceil(total / steps_per_epoch) if by_epoch else int(total)
        found["steps_per_epoch"] = 1 if self.scheduler_interval == "epoch" else steps_per_epoch
        return {name: value for name, value in found.items() if name in takes and name not in given}

    def _fused(self) -> dict[str, bool]:
        """``fused=True`` where optimiser, device and precision allow it and the config leaves it open.

        One fused update of 134 M parameters takes a fifth of the default's time on a CPU.
        """
        option = inspect.signature(self.optimizer).parameters.get("fused")
        # GradScaler with a fused optimiser unscales inside the step, where gradients can no longer be clipped
        clips_fp16 = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None
        is_divided = hasattr(self.trainer.strategy, "shard")  # for which torch has not all of them
        allowed = option is not None and option.default is None and self.device.type in ("cpu", "cuda")
        allowed = allowed and not clips_fp16 and not is_divided
        return {"fused": True} if allowed else {}
