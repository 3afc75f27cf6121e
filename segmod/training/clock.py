"""Seconds of each training step."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from segmod.measure import synchronize


class StepClock(L.Callback):
    """Times every training step: loss, backward pass and optimiser; the wait for data is left out.

    Attributes:
        seconds: Wall and CPU seconds (of all threads) of each step.
    """

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self._started = (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start once the device is idle."""
        synchronize(pl_module.device)
        self._started = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop once the device is idle again."""
        synchronize(pl_module.device)
        wall, cpu = self._started
        self.seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
