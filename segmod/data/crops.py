"""Crops of single objects: in which order they come, and how a crop and its labels are cut from a whole image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segmod.data.base import SegmentationDataset, Transform
from segmod.data.boxes import Boxes, Int32Array
from segmod.data.instances import find_instances
from segmod.data.order import TrainingOrder
from segmod.ground.types import IGNORE_INDEX, FloatArray, Sample, UInt8Array


class CropOrder(TrainingOrder):
    """The crops of an epoch as a function of (seed, epoch); yields (epoch, index, copy) keys.

    An epoch has as many crops as there are boxes. With ``balance`` each class has the same share of them: boxes of rare
    classes come several times, ``copy`` counting them, and of common classes only some come (Noh et al. 2015,
    section 4.2: "the redundancy of the classes is balanced").

    Where the images are more than ``window``, the crops of an image do not lie anywhere in the epoch but within a
    stretch in which ``window`` images take part, so that an image need not be decoded again for each of its crops.

    Args:
        boxes: all boxes.
        seed: seed of the draw and of the order.
        rank: position of this process.
        world_size: number of processes.
        balance: whether all classes come equally often.
        window: number of images whose crops are mixed; None for all.
    """

    def __init__(
        self,
        boxes: Boxes,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        balance: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__(len(boxes), seed, rank, world_size)
        self.boxes = boxes
        self.balance = balance
        self.window = window

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        drawn, copies = self._draw(rng)
        images, place = np.unique(self.boxes.image[drawn], return_inverse=True)
        if self.window is None or len(images) <= self.window:
            order = rng.permutation(self.size)
        else:
            # Each image begins at a random moment and ends `window` images later, going on at the start of the epoch
            # where that is beyond its end: so every part of the epoch is mixed alike.
            begin = rng.permutation(len(images))[place]
            order = np.argsort((begin + self.window * rng.random(self.size)) % len(images), kind="stable")
        mine = order[self.rank :: self.num_replicas][: len(self)][self.start :]
        keys = zip(drawn[mine].tolist(), copies[mine].tolist(), strict=True)
        return iter([(self.epoch, box, copy) for box, copy in keys])

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the boxes of the epoch, and how often each has come before."""
        if not self.balance:
            return np.arange(self.size), np.zeros(self.size, dtype=np.int64)
        classes = np.unique(self.boxes.label)
        bounds = np.arange(len(classes) + 1) * self.size // len(classes)
        drawn, copies = [], []
        for label, share in zip(classes.tolist(), np.diff(bounds).tolist(), strict=True):
            members = np.flatnonzero(self.boxes.label == label)
            rounds = [rng.permutation(members) for _ in range(-(-share // len(members)))]
            drawn.append(np.concatenate(rounds)[:share])
            copies.append(np.arange(share) // len(members))
        return np.concatenate(drawn), np.concatenate(copies)


class BoxCrops(Dataset[Sample]):
    """Crops of whole images around boxes (Noh et al. 2015, sections 4.2 and 5.1), transformed.

    Whole images are kept once decoded, the ``cache_images`` used last, by each process that loads.

    Args:
        images: the whole images; their own transform is not used.
        boxes: one a crop, those of an image next to each other.
        transform: turns the crop and its labels into tensors.
        seed: seed of the augmentation; together with epoch, index and copy it decides all of it.
        context: both sides of a box are multiplied by this, about its centre.
        square: then made square by the longer side.
        isolate: only the object of the box keeps its class, other objects become background; else all keep theirs.
        cache_images: decoded images kept; about 0.9 MB each for PASCAL VOC.
    """

    def __init__(
        self,
        images: SegmentationDataset,
        boxes: Boxes,
        transform: Transform,
        seed: int = 0,
        context: float = 1.2,
        square: bool = True,
        isolate: bool = False,
        cache_images: int = 0,
    ) -> None:
        self.images = images
        self.boxes = boxes
        self.windows = enlarge(boxes.box, context, square)
        self.transform = transform
        self.seed = seed
        self.isolate = isolate
        self.cache_images = cache_images
        self._recent: dict[int, tuple[UInt8Array, UInt8Array, NDArray[np.integer] | None]] = {}
        self._first = np.searchsorted(boxes.image, boxes.image)  # row of the first box of the same image

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        """Return the crop of an index, or of an (epoch, index, copy) key as the training order yields it."""
        epoch, index, copy = key if isinstance(key, tuple) else (0, key, 0)
        window = self.windows[index]
        place = int(self.boxes.image[index])
        image, mask, numbers = self._whole(place)
        crop = cut(image, window, 0)
        labels = cut(mask, window, IGNORE_INDEX)
        if numbers is not None:
            kept = (cut(numbers, window, 0) == self.boxes.number[index]) | (labels == IGNORE_INDEX)
            labels = np.where(kept, labels, np.uint8(0))
        out = self.transform(crop, labels, (self.seed, epoch, index, copy))
        return {
            "image": out.image,
            "mask": out.mask,
            "name": f"{self.images.names[place]}_{index - self._first[index]}",
            "index": index,
        }

    def _whole(self, image: int) -> tuple[UInt8Array, UInt8Array, NDArray[np.integer] | None]:
        """Return image, mask and, to isolate objects, their numbers; from the cache if they are there."""
        found = self._recent.pop(image, None) or self._read(image)
        self._recent[image] = found  # the last one used comes last
        if len(self._recent) > self.cache_images:
            del self._recent[next(iter(self._recent))]
        return found

    def _read(self, index: int) -> tuple[UInt8Array, UInt8Array, NDArray[np.integer] | None]:
        image, mask = self.images.read(index)
        numbers: NDArray[np.integer] | None = None
        if self.isolate:
            numbers = find_instances(mask, self.images.read_objects(index))[1]
            if numbers.max() <= np.iinfo(np.uint8).max:
                numbers = numbers.astype(np.uint8)
        if self.images.void_as_background:
            mask[mask == IGNORE_INDEX] = 0
        return image, mask, numbers


def enlarge(boxes: NDArray[np.integer] | FloatArray, context: float = 1.2, square: bool = True) -> Int32Array:
    """Return boxes enlarged about their centres, in whole pixels; they may reach out of the image.

    Args:
        boxes: (N, 4) xyxy pixels.
        context: factor of both sides.
        square: make them square by the longer side.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]) * context
    if square:
        sides = np.broadcast_to(sides.max(axis=1, keepdims=True), sides.shape)
    sides = np.floor(sides + 0.5).clip(1)
    corner = np.floor((boxes[:, :2] + boxes[:, 2:] - sides) / 2 + 0.5)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.int32)


def cut(array: NDArray[Any], window: Sequence[int] | Int32Array, fill: int) -> NDArray[Any]:
    """Return a window of an image or map (H, W, ...), a view where it lies inside; ``fill`` is seen outside."""
    height, width = array.shape[:2]
    x1, y1, x2, y2 = map(int, window)
    left, right = (min(max(x, 0), width) for x in (x1, x2))
    top, bottom = (min(max(y, 0), height) for y in (y1, y2))
    inside = array[top:bottom, left:right]
    if inside.shape[:2] == (y2 - y1, x2 - x1):
        return inside
    padded = np.full((y2 - y1, x2 - x1, *array.shape[2:]), fill, dtype=array.dtype)
    padded[top - y1 : bottom - y1, left - x1 : right - x1] = inside
    return padded
