"""A data set of one's own: bright discs and squares on a dark ground. Put the reading of your files in their place.

A folder of images and masks needs no class at all: ``data=folder data.root=DIR``.
"""

import numpy as np

from segmod.data.base import Dataset
from segmod.ground.errors import require
from segmod.ground.types import Images, UInt8Array


class OwnData(Dataset):
    """Scenes of 48 x 64 pixels, drawn from the names of the images.

    Args:
        images: How many the training split has; the validation split has a quarter. A key of ``data.dataset``.
    """

    name = "Own data"
    classes = ("ground", "disc", "square")  # in the order of their labels; 255 is void
    image_size = (48, 64)  # height and width; leave it out where images differ, and set data.crop_size

    def __init__(self, images: Images = 64) -> None:
        self.counts = {"train": images, "val": max(1, images // 4)}

    def names(self, split: str) -> list[str]:
        """Name the images of a split."""
        require(split in self.counts, f"{self.name} has no split {split}: choose one of {', '.join(self.counts)}")
        return [f"{split}_{number:03}" for number in range(self.counts[split])]

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Return image uint8 (H, W, 3), RGB, and mask uint8 (H, W)."""
        rng = np.random.default_rng(list(name.encode()))
        mask = np.zeros((48, 64), np.uint8)
        y, x = np.mgrid[:48, :64]
        for label in (1, 2):
            top, left, radius = rng.integers(8, 40), rng.integers(8, 56), rng.integers(6, 12)
            dy, dx = abs(y - top), abs(x - left)
            inside = dy**2 + dx**2 < radius**2 if label == 1 else np.maximum(dy, dx) < radius
            mask[inside] = label
        colours = np.array([[40, 50, 40], [220, 180, 60], [70, 110, 230]])
        image = colours[mask] + rng.normal(0, 15, (48, 64, 3))
        return image.clip(0, 255).astype(np.uint8), mask
