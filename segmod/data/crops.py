"""Crops of single objects: the boxes they are cut around, in which order they come, and how they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision.ops import box_iou

from segmod.data.base import Split, Transform, without_void
from segmod.data.instances import Instance, find_instances
from segmod.data.order import TrainingOrder
from segmod.ground.boxes import Int32Array, enlarge
from segmod.ground.types import IGNORE_INDEX, ProposalSource, Sample, UInt8Array


@dataclass(frozen=True)
class Boxes:
    """Boxes of the images of a dataset, one a row.

    Attributes:
        image: int32 (N,), position of the image.
        box: int32 (N, 4), x1, y1, x2, y2 in pixels; x2 and y2 lie just outside.
        label: int32 (N,), class of the object.
        number: int32 (N,), what the object's pixels have in the map of `find_instances`; 0 for a proposal.
    """

    image: Int32Array
    box: Int32Array
    label: Int32Array
    number: Int32Array

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Boxes:
        """Return some of the rows."""
        return Boxes(self.image[rows], self.box[rows], self.label[rows], self.number[rows])

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """Return the rows of all parts, of which there is at least one."""
        columns = ("image", "box", "label", "number")
        return cls(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


class BoxFinder(Dataset[Boxes]):
    """The boxes of each image of a dataset.

    Args:
        images: the whole images.
        proposals: source of boxes that may hold an object; None for the boxes of the objects themselves.
        min_iou: a proposal counts where it overlaps an object's box this much, intersection over union 0..1. The paper
            says "sufficiently".
        include_objects: the boxes of the objects count besides the proposals.
        min_side: boxes whose shorter side has fewer pixels are left out; 0 for none.
    """

    def __init__(
        self,
        images: Split,
        proposals: ProposalSource | None = None,
        min_iou: float = 0.5,
        include_objects: bool = True,
        min_side: int = 0,
    ) -> None:
        self.images = images
        self.proposals = proposals
        self.min_iou = min_iou
        self.include_objects = include_objects
        self.min_side = min_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Boxes:
        image, mask = self.images.read(index)
        instances, _ = find_instances(mask, self.images.read_objects(index))
        parts = [object_boxes(index, instances)] if self.proposals is None or self.include_objects else []
        if self.proposals is not None:
            # Without an object nothing overlaps one: the proposals need not be made.
            proposed = self.proposals(self.images.names[index], image, mask) if instances else np.empty((0, 5))
            parts.append(overlapping(index, proposed[:, :4], instances, self.min_iou))
        found = Boxes.joined(parts)
        return found[(found.box[:, 2:] - found.box[:, :2]).min(axis=1) >= self.min_side]


def object_boxes(image: int, instances: Sequence[Instance]) -> Boxes:
    """Return the tight boxes of an image's objects."""
    return Boxes(
        np.full(len(instances), image, dtype=np.int32),
        np.array([instance.box for instance in instances], dtype=np.int32).reshape(-1, 4),
        np.array([instance.label for instance in instances], dtype=np.int32),
        np.array([instance.number for instance in instances], dtype=np.int32),
    )


def overlapping(image: int, boxes: NDArray[np.floating], instances: Sequence[Instance], min_iou: float) -> Boxes:
    """Return the boxes that overlap some object, with the class of the object that each overlaps most.

    Args:
        image: position of the image in its dataset.
        boxes: (N, 4) xyxy pixels.
        instances: the objects of the image.
        min_iou: least intersection over union, 0..1.
    """
    objects = object_boxes(image, instances)
    if not len(objects) or not len(boxes):
        return objects[np.empty(0, dtype=np.int64)]
    overlap = box_iou(torch.from_numpy(boxes.astype(np.float64)), torch.from_numpy(objects.box.astype(np.float64)))
    best, which = (column.numpy() for column in overlap.max(dim=1))
    kept = best >= min_iou
    found = objects[which[kept]]
    return Boxes(found.image, np.rint(boxes[kept]).astype(np.int32), found.label, np.zeros_like(found.number))


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
        images: Split,
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
            mask = without_void(mask)
        return image, mask, numbers


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
