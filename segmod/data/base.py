"""What a data set is, and what all share: the images of one split, checked as they are read, and transformed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch.utils.data

from segmod.data.instances import COMPONENTS
from segmod.data.transforms import EvalTransform, TrainTransform
from segmod.ground.errors import UserError, require
from segmod.ground.names import require_name
from segmod.ground.palettes import VOC_PALETTE, Legend
from segmod.ground.types import IGNORE_INDEX, Sample, UInt8Array

# Worker processes are the parallelism of loading; OpenCV's own threads would compete with them. A worker that is forked
# while they exist hangs or crashes, for it inherits the pool without its threads: so here, before any fork.
cv2.setNumThreads(0)

Transform = TrainTransform | EvalTransform


class Dataset(ABC):
    """A data set: what its labels are called, which images its splits have, and how one is read.

    A subclass sets ``name`` and ``classes``, as attributes of the class or in its constructor, and gives `names` and
    `read`; the rest may stay as it is. Constructing one opens no file. `Split` checks what `read` returns.

    Attributes:
        name: as records and tables show it, such as ``VOC2012``.
        classes: names of the classes in the order of their labels, 0 being the background.
        palette: uint8 (256, 3), the colours of the labels, RGB; by default those of PASCAL VOC.
        image_size: (height, width) in pixels that all images have; None where they differ.
    """

    name: str
    classes: Sequence[str]
    palette: UInt8Array = VOC_PALETTE
    image_size: tuple[int, int] | None = None

    @abstractmethod
    def names(self, split: str) -> Sequence[str]:
        """Return the name of each image of a split, no two alike.

        Raises:
            UserError: there is no such split.
        """

    @abstractmethod
    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        """Return image uint8 (H, W, 3) RGB and mask uint8 (H, W), labels 0..K-1 and 255 for void.

        Raises:
            UserError: a file is missing or damaged.
        """

    def files(self, split: str, name: str) -> tuple[Path, Path] | None:
        """Return the files of image and mask, which messages then name; None where there are none."""
        return None

    def read_objects(self, split: str, name: str) -> UInt8Array | None:
        """Return the map of objects, uint8 (H, W): 0 background, 255 void, else an object's number; None without one.

        `segmod.data.instances.find_instances` makes instances of it, or of the mask alone.
        """
        return None

    def object_source(self, split: str) -> str:
        """Return where the objects of a split come from, in words for a log."""
        return COMPONENTS

    def download(self, splits: Sequence[str]) -> None:
        """Fetch what some splits need, unless it is there.

        Raises:
            UserError: it failed, or this data is not to be had so.
        """
        raise UserError(f"data.download=true: segmod cannot fetch {self.name}; put its files in place yourself")

    @property
    def legend(self) -> Legend:
        """Names and colours of the labels.

        Raises:
            UserError: there are too few or too many classes, or two of one name.
        """
        classes = tuple(map(str, self.classes))
        require(2 <= len(classes) <= IGNORE_INDEX, f"{self.name}: has {len(classes)} classes; 2 to 255 can be labelled")
        twice = sorted({name for name in classes if classes.count(name) > 1})
        require(not twice, f"{self.name}: classes {', '.join(twice)} come twice; give each a name of its own")
        return Legend(self.name, classes, self.palette)


class Split(torch.utils.data.Dataset[Sample]):
    """The images of one split of a data set, each checked when it is read, transformed.

    Args:
        dataset: the data set.
        split: name of the split.
        transform: turns arrays into tensors.
        seed: seed of the augmentation; together with epoch and index it decides all of it.
        void_as_background: labels 255 become 0 before the transform, so that only padding is void.

    Raises:
        UserError: there is no such split, or two of its images have one name, or one a name that no file can have.
    """

    def __init__(
        self, dataset: Dataset, split: str, transform: Transform, seed: int = 0, void_as_background: bool = False
    ) -> None:
        self.dataset = dataset
        self.split = require_name(split, "split ", nested=False)
        self.names = [require_name(name, f"{dataset.name} {split}: image ") for name in dataset.names(split)]
        self.transform = transform
        self.seed = seed
        self.void_as_background = void_as_background
        if len(set(self.names)) < len(self.names):
            seen: set[str] = set()
            twice = next(name for name in self.names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise UserError(f"{dataset.name} {split}: two images are called {twice}; give each a name of its own")

    def read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Read image uint8 (H, W, 3) RGB and mask uint8 (H, W) as stored, untransformed.

        Raises:
            UserError: they cannot be read, are of another kind, differ in size, or the mask holds labels that the data
                set does not have.
        """
        image, mask = self.dataset.read(self.split, self.names[index])
        parts = (("image", image, "(height, width, 3)"), ("mask", mask, "(height, width)"))
        for place, (what, array, axes) in enumerate(parts):
            if not _is_bytes(array, axes.count(",") + 1):
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise UserError(
                    f"{self._places(index)[place]}: the {what} is {found}; "
                    f"{type(self.dataset).__name__}.read must return uint8 {axes}"
                )
        if mask.shape != image.shape[:2]:
            image_place, mask_place = self._places(index)
            raise UserError(
                f"{mask_place}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels but its image {image_place} is "
                f"{image.shape[1]}x{image.shape[0]}; replace one of them or take the name off the split's list"
            )
        count = len(self.dataset.classes)
        # In uint8 255 + 1 wraps to 0, so one maximum finds every label that is neither a class nor void.
        if int((mask + np.uint8(1)).max()) > count:
            wrong = sorted({int(label) for label in np.unique(mask)} - {*range(count), IGNORE_INDEX})
            raise UserError(
                f"{self._places(index)[1]}: labels {wrong} are outside 0..{count - 1} and {IGNORE_INDEX}, those of "
                f"{self.dataset.name}; store class indices, not colours or other classes"
            )
        return image, mask

    def read_objects(self, index: int) -> UInt8Array | None:
        """Return the map of objects, see `Dataset.read_objects`."""
        return self.dataset.read_objects(self.split, self.names[index])

    def object_source(self) -> str:
        """Return where the objects of the images come from, in words for a log."""
        return self.dataset.object_source(self.split)

    def _places(self, index: int) -> tuple[str, str]:
        """Return where image and mask are, for messages."""
        files = self.dataset.files(self.split, self.names[index])
        if files is not None:
            return str(files[0]), str(files[1])
        return (f"{self.names[index]} of {self.dataset.name} {self.split}",) * 2

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index, or of an (epoch, index) key as the training order yields it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        image, mask = self.read(index)
        if self.void_as_background:
            mask = without_void(mask)
        out = self.transform(image, mask, (self.seed, epoch, index))
        return {"image": out.image, "mask": out.mask, "name": self.names[index], "index": index}


def _is_bytes(array: object, axes: int) -> bool:
    """Whether an array is uint8, of so many axes of which a third holds three colours, and not empty."""
    fits = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == axes and array.size > 0
    return fits and array.shape[2:] in ((), (3,))  # type: ignore[attr-defined]


def without_void(mask: UInt8Array) -> UInt8Array:
    """Return a mask whose void pixels are background; the one given stays as it is, for a data set may keep it."""
    return np.where(mask == IGNORE_INDEX, np.uint8(0), mask)
