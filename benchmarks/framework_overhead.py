"""What Lightning alone, and segmod on it, add to a training step: the same net, data and optimiser in a bare loop.

    python benchmarks/framework_overhead.py            a small net, where overhead shows in milliseconds
    python benchmarks/framework_overhead.py --large    a net of a second or more a step, where it shows in percent

All run the same batches from memory, in alternating blocks (A B C C B A) of one process.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from segmod.ground.memory import keep_freed_memory
from segmod.ground.types import Batch
from segmod.inference.dense import DensePredictor
from segmod.measure import random_batch
from segmod.nets.hypercolumn import Hypercolumn
from segmod.optim import Poly
from segmod.runs.launch import prepare_lightning
from segmod.training.checkpoints import AtomicCheckpointIO, Checkpoints, StopOnSignal
from segmod.training.loggers import CSVLogger
from segmod.training.module import SegmentationModule

TAPS = [f"features.{i}" for i in (1, 4, 7, 10, 13)]


def make_net(width: float, hidden: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return Hypercolumn(21, "tiny", TAPS, width=width, hidden=hidden, freeze_backbone=False)


class Clock(L.Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        """Note the time."""
        self.ticks.append(time.perf_counter())


def bare(net: torch.nn.Module, data: list[Batch]) -> list[float]:
    """Seconds of each step of a plain loop."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=True)
    schedule = Poly(optimizer, total_steps=len(data))
    ticks = []
    for batch in DataLoader(data, batch_size=None):  # type: ignore[arg-type]
        ticks.append(time.perf_counter())
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch["image"]), batch["mask"].long(), ignore_index=255)
        loss.backward()
        optimizer.step()
        schedule.step()
    return [b - a for a, b in itertools.pairwise(ticks)]


class Plain(L.LightningModule):
    """The least that Lightning's own loop can be given."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of a batch."""
        return F.cross_entropy(self.net(batch["image"]), batch["mask"].long(), ignore_index=255)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the bare loop."""
        return torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=True)


def lightning(net: torch.nn.Module, data: list[Batch]) -> list[float]:
    """Seconds of each step through Lightning alone: what it adds itself is the least that segmod can add."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(net), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return [b - a for a, b in itertools.pairwise(clock.ticks)]


def framework(net: torch.nn.Module, data: list[Batch]) -> list[float]:
    """Seconds of each step through segmod, with its default callbacks and csv logger."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(str(Path(folder) / "checkpoints"))
        module = SegmentationModule(
            net,
            torch.nn.CrossEntropyLoss(ignore_index=255),
            lambda groups, **fused: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, fused=True),
            scheduler=Poly,
            predictor=DensePredictor(),
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[L.pytorch.callbacks.LearningRateMonitor("step"), clock, checkpoints, StopOnSignal(checkpoints)],
            logger=CSVLogger(folder),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
        )
        trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return [b - a for a, b in itertools.pairwise(clock.ticks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--large", action="store_true", help="a net of a second or more a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    prepare_lightning()
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    width, hidden, size, steps = (2.0, 192, 256, 6) if arguments.large else (0.1, 8, 32, 200)
    data = [random_batch(2, (size, size), 21)] * steps
    ways: dict[str, Callable[[torch.nn.Module, list[Batch]], list[float]]] = {
        "bare loop": bare,
        "Lightning": lightning,
        "segmod": framework,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(arguments.rounds):
        for name in (list(ways) + list(ways)[::-1]) if round_ % 2 == 0 else (list(ways)[::-1] + list(ways)):
            seconds[name] += ways[name](make_net(width, hidden), data)[2:]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:10} median {1e3 * median[name]:9.3f} ms  min {1e3 * min(values):9.3f} ms  ({len(values)} steps)")
    for name in ("Lightning", "segmod"):
        added = median[name] - median["bare loop"]
        print(f"{name} adds {added * 1e3:.3f} ms a step, ratio {median[name] / median['bare loop']:.3f}")


if __name__ == "__main__":
    main()
