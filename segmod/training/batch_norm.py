"""Batch norm that stops learning part-way through a training."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from segmod.ground.errors import UserError
from segmod.ground.torch_private import BatchNorm
from segmod.ground.types import Amount


class FreezeBatchNorm(L.Callback):
    """Freezes every batch norm after some epochs: statistics, weights and biases stay as they are from then on.

    It is done anew before each batch, for what a resumed run or somebody's ``train()`` may have undone. A frozen weight
    has no gradient, so the optimiser leaves it alone, weight decay and momentum included; it stays in the optimiser's
    groups, so that checkpoints from before and after have one layout. DistributedDataParallel waits for a gradient of
    every parameter that it was given, so there the gradients are computed, and dropped before the optimiser's step.

    Args:
        epochs: Epochs that train batch norm; 0 freezes it from the start.
    """

    def __init__(self, epochs: Amount) -> None:
        if epochs < 0:
            raise UserError(f"callbacks.freeze_batch_norm.epochs={epochs}: must be 0 or more")
        self.epochs = epochs
        self._norms: list[BatchNorm] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the layers.

        Raises:
            UserError: There is none.
        """
        self._norms = [part for part in pl_module.modules() if isinstance(part, BatchNorm)]
        if not self._norms:
            raise UserError(
                "callbacks.freeze_batch_norm: the net has no batch norm; set callbacks.freeze_batch_norm=null"
            )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Freeze if the time has come."""
        if trainer.current_epoch < self.epochs:
            return
        awaited = isinstance(trainer.strategy.model, DistributedDataParallel)
        for norm in self._norms:
            norm.eval()
            norm.requires_grad_(awaited)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what is frozen, before they are clipped or used."""
        if trainer.current_epoch >= self.epochs:
            for norm in self._norms:
                norm.zero_grad(set_to_none=True)
