"""Joint transforms of image and mask. Images stay uint8 RGB: the net's first layer normalises them.

Randomness is a function of the seed handed in with each sample, so it depends on no worker, rank or interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from segmod.data.augmentation import RandomWindow, pipeline, reseed
from segmod.ground.errors import require, whole
from segmod.ground.types import UInt8Array

IMAGENET_COLOUR = (124, 116, 104)
"""Mean colour of ImageNet, RGB: what padding shows by default; next to 0 in a net that normalises by it."""


class Transformed(NamedTuple):
    """What a transform returns."""

    image: Tensor  # uint8 (3, H, W), RGB
    mask: Tensor  # uint8 (H, W)


class TrainTransform:
    """Random scale, crop and flip of image and mask.

    Args:
        crop_size: side of the square crop in pixels; None keeps the whole image.
        scale: range (low, high) of a random resize factor; None for 1.
        short_side: resize so that the shorter side has this many pixels, before ``scale``.
        squash: resize image and mask to this side in both directions, aspect ignored, before ``scale``.
        hflip: probability of a horizontal flip, 0..1.
        pad: colour of padding: ``mean`` (that of ImageNet) or ``black``.

    Raises:
        UserError: a value makes no sense, such as a crop larger than every image.
    """

    def __init__(
        self,
        crop_size: int | None = None,
        scale: Sequence[float] | None = None,
        short_side: int | None = None,
        squash: int | None = None,
        hflip: float = 0.5,
        pad: str = "mean",
    ) -> None:
        low, high = scale_range(scale)
        for key, side in (("crop_size", crop_size), ("short_side", short_side), ("squash", squash)):
            require(side is None or whole(side, 1), f"data.{key}={side}: must be a whole number of pixels, or null")
        require(0 <= hflip <= 1, f"data.hflip={hflip}: must be a probability, 0 to 1")
        require(pad in ("mean", "black"), f"data.pad={pad}: choose mean or black")
        key, side = ("squash", squash) if squash else ("short_side", short_side)
        require(
            not (crop_size and side) or crop_size <= side * high,
            f"data.crop_size={crop_size}: larger than data.{key}={side} with the largest data.scale; lower it",
        )
        self._fixed = crop_size is not None
        self._alike = squash is not None
        self._rescales = low != high
        fill = IMAGENET_COLOUR if pad == "mean" else (0, 0, 0)
        window = RandomWindow(crop_size, (low, high), short_side, squash, fill)
        self._pipeline = pipeline(window, hflip)

    def gives_one_size(self, inputs_alike: bool) -> bool:
        """Say whether all outputs have the same size, given whether all inputs have."""
        return self._fixed or ((self._alike or inputs_alike) and not self._rescales)

    def __call__(self, image: UInt8Array, mask: UInt8Array, seed: Sequence[int]) -> Transformed:
        """Transform one sample.

        Args:
            image: uint8 (H, W, 3) RGB.
            mask: uint8 (H, W) labels.
            seed: the numbers that decide all randomness, such as (seed, epoch, index).
        """
        reseed(self._pipeline, seed)
        out = self._pipeline(image=image, mask=mask)
        return _tensors(out["image"], out["mask"])


class EvalTransform:
    """Nothing random: ``squash`` brings image and mask to one square size, else they stay as they are.

    Args:
        squash: side in pixels of the square that image (bilinear) and mask (nearest) are resized to, aspect ignored.
        centre: side of the square cut from the middle of that one; None for all of it.
    """

    def __init__(self, squash: int | None = None, centre: int | None = None) -> None:
        self.squash = squash
        self.centre = centre

    def __call__(self, image: UInt8Array, mask: UInt8Array, seed: Sequence[int]) -> Transformed:
        """Transform one sample; see `TrainTransform`. The seed changes nothing."""
        if self.squash:
            size = (self.squash, self.squash)
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
            mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
            if self.centre:
                start = (self.squash - self.centre) // 2
                middle = slice(start, start + self.centre)
                image, mask = image[middle, middle], mask[middle, middle]
        return _tensors(image, mask)


def _tensors(image: UInt8Array, mask: UInt8Array) -> Transformed:
    """Image and mask as tensors on the same memory where that is whole: the batch is where they are copied."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return Transformed(pixels, torch.from_numpy(np.ascontiguousarray(mask)))


def scale_range(scale: Sequence[float] | None) -> tuple[float, float]:
    """Return ``data.scale`` as (low, high).

    Raises:
        UserError: it is no range of positive factors.
    """
    if scale is None:
        return 1.0, 1.0
    require(
        len(scale) == 2 and 0 < scale[0] <= scale[1], f"data.scale={scale}: must be [low, high] with 0 < low <= high"
    )
    return float(scale[0]), float(scale[1])
