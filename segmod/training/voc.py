"""PASCAL VOC as a datamodule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segmod.data.base import Transform
from segmod.data.sbd import AUGMENTED_SPLIT, download_sbd
from segmod.data.verify import verify
from segmod.data.voc import VOCSegmentation, download_voc
from segmod.ground.errors import require
from segmod.ground.palettes import VOC_CLASSES
from segmod.training.datamodule import SegmentationDataModule


class VOCDataModule(SegmentationDataModule):
    """PASCAL VOC on disk; see `VOCSegmentation`.

    Args:
        root: folder that holds ``VOCdevkit``, or ``VOCdevkit`` itself, or the folder of the year.
        year: 2007..2012.
        sbd_root: folder of SBD for split ``trainaug``; None for ``sbd`` in ``root``.
        download: fetch what is missing.
        verify: read every file before training.
        base: the arguments of `SegmentationDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        year: int = 2012,
        sbd_root: str | Path | None = None,
        download: bool = False,
        verify: bool = False,
        num_classes: int = len(VOC_CLASSES),
        train_split: str = "train",
        val_split: str = "val",
        **base: Any,
    ) -> None:
        require(
            num_classes == len(VOC_CLASSES),
            f"data.num_classes={num_classes}: PASCAL VOC has {len(VOC_CLASSES)} classes",
        )
        super().__init__(num_classes, train_split, val_split, **base)
        self.root = Path(root).expanduser()
        self.year = year
        self.sbd_root = Path(sbd_root).expanduser() if sbd_root else self.root / "sbd"
        self.download = download
        self.verify = verify

    def prepare_data(self) -> None:
        """Download and verify, in one process."""
        splits = (self.train_split, self.val_split)
        if self.download:
            download_voc(self.root, self.year)
            if AUGMENTED_SPLIT in splits:
                download_sbd(self.sbd_root)
        if self.verify:
            verify([self.dataset(split, self.eval_transform) for split in dict.fromkeys(splits)])

    def dataset(self, split: str, transform: Transform) -> VOCSegmentation:
        """Return the images of a split."""
        return VOCSegmentation(
            self.root, split, transform, self.year, self.sbd_root, self.seed, self.void_as_background
        )
