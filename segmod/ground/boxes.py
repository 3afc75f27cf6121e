"""Boxes: x1, y1, x2, y2 in pixels, where x2 and y2 lie just outside, so that x2 - x1 is the width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]


def clip(boxes: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return boxes (N, 4) cut off at the borders of an image; of one that lies outside nothing is left."""
    return boxes.clip(0, np.array([width, height, width, height], dtype=boxes.dtype))


def enlarge(boxes: NDArray[Any], context: float = 1.2, square: bool = True) -> Int32Array:
    """Return boxes enlarged about their centres, in whole pixels; they may reach out of the image.

    Their sides are rounded first, then the corner, halves upwards, so that equal boxes at different places stay equal.

    Args:
        boxes: (N, 4), whole numbers or not.
        context: factor of both sides.
        square: make them square by the longer side.

    Returns:
        int32 (N, 4), sides of at least one pixel.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]) * context
    if square:
        sides = np.broadcast_to(sides.max(axis=1, keepdims=True), sides.shape)
    sides = np.floor(sides + 0.5).clip(1)
    corner = np.floor((boxes[:, :2] + boxes[:, 2:] - sides) / 2 + 0.5)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.int32)
