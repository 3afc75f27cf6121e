"""Procedural scenes as a datamodule: nothing to download."""

from __future__ import annotations

from typing import Any

from segmod.data.base import Transform
from segmod.data.synthetic import SyntheticScenes
from segmod.data.transforms import scale_range
from segmod.ground.errors import require, whole
from segmod.ground.palettes import VOC_CLASSES
from segmod.training.datamodule import SegmentationDataModule


class SyntheticDataModule(SegmentationDataModule):
    """Procedural scenes; see `SyntheticScenes`.

    Args:
        size: side of the square scenes in pixels, at least 32.
        train_images: scenes of the training split.
        val_images: scenes of every other split.
        scene_seed: seed of the scenes, apart from ``seed`` so that runs with other seeds share their data.
        base: the arguments of `SegmentationDataModule`.
    """

    one_size = True

    def __init__(
        self,
        size: int = 128,
        train_images: int = 512,
        val_images: int = 64,
        scene_seed: int = 0,
        num_classes: int = len(VOC_CLASSES),
        train_split: str = "train",
        val_split: str = "val",
        **base: Any,
    ) -> None:
        require(whole(size, 32), f"data.size={size}: must be a whole number of at least 32 pixels")
        for key, count in (("train_images", train_images), ("val_images", val_images)):
            require(whole(count, 1), f"data.{key}={count}: must be a whole number of at least 1")
        require(
            whole(num_classes, 2) and num_classes <= len(VOC_CLASSES),
            f"data.num_classes={num_classes}: must be 2 to {len(VOC_CLASSES)}",
        )
        super().__init__(num_classes, train_split, val_split, **base)
        crop, window = base.get("crop_size"), base.get("squash") or base.get("short_side")
        require(
            not crop or bool(window) or crop <= size * scale_range(base.get("scale"))[1],
            f"data.crop_size={crop}: larger than any scene, data.size={size} times data.scale; lower it",
        )
        self.size = size
        self.train_images = train_images
        self.val_images = val_images
        self.scene_seed = scene_seed

    def dataset(self, split: str, transform: Transform) -> SyntheticScenes:
        """Return the scenes of a split."""
        length = self.train_images if split == self.train_split else self.val_images
        size = (self.size, self.size)
        return SyntheticScenes(
            split, length, transform, size, self.num_classes, self.scene_seed, self.seed, self.void_as_background
        )
