"""How many objects a source of proposals finds: recall by IoU and by number of boxes (Hosang et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from segmod.data.instances import Instance
from segmod.ground.types import FloatArray

COUNTS = (10, 50, 100, 500, 2000)
"""Numbers of boxes an image at which recall is told."""
AVERAGED = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds of the average recall: 0.5, 0.55, ..., 0.95."""


def best_overlaps(boxes: FloatArray, instances: Sequence[Instance], counts: Sequence[int] = COUNTS) -> FloatArray:
    """Return the best IoU that the first boxes of an image have with each of its objects.

    Args:
        boxes: (N, 5), best first.
        instances: objects of the image.
        counts: numbers of boxes.

    Returns:
        float32 (objects, counts).
    """
    if not len(boxes) or not instances:
        return np.zeros((len(instances), len(counts)), dtype=np.float32)
    truth = torch.tensor([instance.box for instance in instances], dtype=torch.float32)
    running = box_iou(truth, torch.from_numpy(boxes[:, :4])).cummax(dim=1).values  # (objects, boxes)
    best: FloatArray = running[:, [min(count, len(boxes)) - 1 for count in counts]].numpy()
    return best


def recall_at(best: FloatArray, threshold: float) -> NDArray[np.floating]:
    """Return the fraction of objects found at an IoU, one a count.

    Args:
        best: IoU (objects, counts), of at least one object.
        threshold: the IoU that counts as found.
    """
    fraction: NDArray[np.floating] = (best >= threshold).mean(axis=0)
    return fraction


def average_recall(best: FloatArray) -> NDArray[np.floating]:
    """Return the mean of the recall at IoU 0.5, 0.55, ..., 0.95, one a count; ``best`` as in `recall_at`."""
    mean: NDArray[np.floating] = np.mean([recall_at(best, threshold) for threshold in AVERAGED], axis=0)
    return mean
