"""A stage that trains nothing: it takes the statistics of batch norm anew, over many batches and fixed weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.torch_private import BatchNorm
from segmod.ground.types import Batch
from segmod.training.module import SegmentationModule


class PreciseBN(SegmentationModule):
    """Computes the population statistics of batch norm, for any net that has some.

    While a net is trained, its running statistics are a moving average over weights that change. Here the weights stay
    as they are (those of ``init_from``): mean and unbiased variance of each training batch are averaged over all steps,
    each batch counting the same, as the authors' code of DeconvNet does with 501 batches of 28 (HyeonwooNoh/DeconvNet,
    ``training/003_make_bn_layer_testable``; Ioffe and Szegedy 2015, algorithm 2). Steps are the trainer's:
    ``trainer.max_steps=501 data.batch_size=28``. Nothing but these statistics changes, and such a run is validated,
    resumed and recorded as any other; take its last checkpoint, since one from the middle has seen fewer batches.

    With several processes the statistics of their batches are averaged, too: each has its share of a batch, whose mean
    and variance count as those of a batch. Batch norms that the net keeps in evaluation mode are left alone.

    Args:
        net: A net with batch norm.
        loss: Watched, not minimised.
        optimizer: Not used; a model's config has one.
        settings: The other arguments of `SegmentationModule`; of these, ``scheduler`` is not used.

    Raises:
        UserError: The net has no batch norm with running statistics that training would change.
    """

    def __init__(self, net: nn.Module, loss: nn.Module, optimizer: Any, **settings: Any) -> None:
        super().__init__(net, loss, optimizer, **settings)
        self.scheduler = None
        net.train()
        self._norms = [
            part for part in net.modules() if isinstance(part, BatchNorm) and part.track_running_stats and part.training
        ]
        if not self._norms:
            raise UserError(
                f"model.net={type(net).__name__} has no batch norm whose statistics could be computed: "
                "leave this stage out, its weights are final"
            )

    def setup(self, stage: str) -> None:
        """Forget the running statistics; a checkpoint that is resumed brings its own afterwards."""
        super().setup(stage)
        if stage == "fit":
            for norm in self._norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean of all batches so far

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Let batch norm take note of a batch."""
        with torch.no_grad():
            loss = super().training_step(batch, batch_idx)
        self.average_over_ranks()
        return loss

    def average_over_ranks(self) -> None:
        """Give all ranks the mean of their statistics, so that each goes on, and saves, with those of all batches."""
        if self.trainer.world_size == 1:
            return
        buffers = [getattr(norm, name) for norm in self._norms for name in ("running_mean", "running_var")]
        mean: Tensor = self.trainer.strategy.reduce(torch.cat(buffers), reduce_op="mean")
        for buffer, part in zip(buffers, torch.split(mean, [len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(part)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute no gradient."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Count a step without taking it."""
        optimizer_closure()
