"""What every dataset of images and masks shares: reading by (epoch, index) key and seeding the transform."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import cv2
from torch.utils.data import Dataset

from segmod.data.instances import COMPONENTS
from segmod.data.transforms import EvalTransform, TrainTransform
from segmod.ground.types import IGNORE_INDEX, Sample, UInt8Array

# Worker processes are the parallelism of loading; OpenCV's own threads would compete with them. A worker that is forked
# while they exist hangs or crashes, for it inherits the pool without its threads: so here, before any fork.
cv2.setNumThreads(0)

Transform = TrainTransform | EvalTransform


class SegmentationDataset(Dataset[Sample]):
    """Images with masks, transformed.

    A subclass gives `read`, and `names` with one entry an image.

    Args:
        names: id of each image.
        transform: turns arrays into tensors.
        seed: seed of the augmentation; together with epoch and index it decides all of it.
        void_as_background: labels 255 become 0 before the transform, so that only padding is void.
    """

    def __init__(
        self, names: Sequence[str], transform: Transform, seed: int = 0, void_as_background: bool = False
    ) -> None:
        self.names = names
        self.transform = transform
        self.seed = seed
        self.void_as_background = void_as_background

    @abstractmethod
    def read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Return image uint8 (H, W, 3) RGB and mask uint8 (H, W) as stored, untransformed."""

    def read_objects(self, index: int) -> UInt8Array | None:
        """Return the map of objects, uint8 (H, W): 0 background, 255 void, else an object's number; None without one.

        `segmod.data.instances.find_instances` makes instances of it, or of the mask alone.
        """
        return None

    def object_source(self) -> str:
        """Return where the objects of the images come from, in words for a log."""
        return COMPONENTS

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index, or of an (epoch, index) key as the training order yields it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        image, mask = self.read(index)
        if self.void_as_background:
            mask[mask == IGNORE_INDEX] = 0
        out = self.transform(image, mask, (self.seed, epoch, index))
        return {"image": out.image, "mask": out.mask, "name": self.names[index], "index": index}
