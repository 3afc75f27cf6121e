"""What segmod uses of torch beyond its public names; they are checked here, once, when this is imported."""

from __future__ import annotations

from torch.nn.modules import batchnorm
from torch.utils.data import dataloader

from segmod.ground.errors import require_names

TESTED = ">=2.7,<2.14"
NAMES = (
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers",
)
require_names("torch", TESTED, NAMES)

BatchNorm = batchnorm._BatchNorm
"""What all kinds of batch normalisation have in common: 1d, 2d, 3d and synchronised."""


def stop_workers(batches: object) -> None:
    """Stop the worker processes of what iterating a DataLoader gave, if it has any."""
    if isinstance(batches, dataloader._MultiProcessingDataLoaderIter):
        batches._shutdown_workers()
