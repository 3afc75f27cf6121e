"""Edge maps for EdgeBoxes: how strong an edge is in each pixel, and which way it faces; thin lines, one pixel wide."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segmod.ground.errors import UserError
from segmod.ground.types import FloatArray, UInt8Array

_PEAK = 1e-6  # of a gradient; below it an image is flat, and dividing by it would make edges of rounding errors


def gradient_edges(image: UInt8Array, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Return edges as the smoothed gradient's magnitude, divided by its maximum and thinned; needs no model.

    Of the three colours, the one that changes most counts in each pixel.

    Args:
        image: uint8 (H, W, 3).
        sigma: standard deviation of the Gaussian, in pixels.

    Returns:
        Strength in [0, 1], and the direction across the edge in [0, pi); both float32 (H, W).
    """
    # Smoothing before differentiating, in float32: in steps of 1/255 a blurred edge would be a staircase.
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    squared = across * across + down * down
    strongest = squared.argmax(axis=2)[..., None]
    dx, dy, peak = (np.take_along_axis(array, strongest, axis=2)[..., 0] for array in (across, down, squared))
    strength = np.sqrt(peak)
    strength /= max(float(strength.max()), _PEAK)
    direction = np.arctan2(dy, dx) % np.float32(np.pi)
    return thin(strength, direction), direction


def thin(strength: FloatArray, direction: FloatArray) -> FloatArray:
    """Return the strength where it is at least that of both neighbours across the edge, else 0.

    The neighbours are one pixel away and interpolated between pixels.

    Args:
        strength: float32 (H, W).
        direction: float32 (H, W), across the edge.
    """
    height, width = strength.shape
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    dx, dy = np.cos(direction), np.sin(direction)
    kept = np.ones(strength.shape, dtype=np.bool_)
    for step in (-1, 1):
        places = x + step * dx, y + step * dy
        kept &= strength >= cv2.remap(strength, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(kept, strength, np.float32(0))


def forest_edges(image: UInt8Array, model: Path) -> tuple[FloatArray, FloatArray]:
    """Return edges of a structured forest (Dollar and Zitnick 2013), thinned.

    Args:
        image: uint8 (H, W, 3), RGB.
        model: OpenCV's file of the trained forest.

    Returns:
        As `gradient_edges`.

    Raises:
        UserError: the file holds no such forest.
    """
    forest = _forest(model)
    strength = forest.detectEdges(image.astype(np.float32) / 255)
    direction = forest.computeOrientation(strength)
    return np.asarray(forest.edgesNms(strength, direction)), np.asarray(direction)


@lru_cache(maxsize=1)  # seconds to read
def _forest(model: Path) -> Any:
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(str(model))
    except cv2.error as error:
        raise UserError(
            f"proposals.model={model}: OpenCV cannot read it as a structured forest ({error.err})"
        ) from None
