"""A check of every file of a dataset before it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rich.progress import track

from segmod.data.base import SegmentationDataset
from segmod.ground.errors import UserError

_SHOWN = 10


def verify(datasets: Sequence[SegmentationDataset]) -> None:
    """Read every image and mask, showing progress.

    Raises:
        UserError: some are bad; names the first ten and says how many there are.
    """
    faults: list[str] = []
    total = sum(len(dataset) for dataset in datasets)
    with ThreadPoolExecutor() as pool:  # decoding runs outside the interpreter lock
        found = (fault for dataset in datasets for fault in pool.map(partial(_fault, dataset), range(len(dataset))))
        faults = [fault for fault in track(found, "Verifying data", total=total) if fault]
    if faults:
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{len(faults)} of {total} images are bad: {'; '.join(faults[:_SHOWN])}{rest}")


def _fault(dataset: SegmentationDataset, index: int) -> str | None:
    try:
        dataset.read(index)
    except UserError as error:
        return str(error)
    return None
