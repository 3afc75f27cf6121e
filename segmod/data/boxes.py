"""Boxes to cut crops around: those of the objects of a dataset's images, and proposals that overlap one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision.ops import box_iou

from segmod.data.base import SegmentationDataset
from segmod.data.instances import Instance, find_instances
from segmod.ground.types import ProposalSource

Int32Array = NDArray[np.int32]


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
        images: SegmentationDataset,
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
