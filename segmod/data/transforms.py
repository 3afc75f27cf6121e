"""Joint transforms of image, mask and boxes, and the normalisation a backbone expects.

Images stay uint8 RGB until the last step; one table look-up a channel then turns them into a normalised tensor.
Randomness is a function of the seed handed in with each sample, so it depends on no worker, rank or interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from segmod.data.augmentation import RandomWindow, pipeline, reseed
from segmod.ground.errors import UserError, require, whole
from segmod.ground.types import FloatArray, UInt8Array


@dataclass(frozen=True)
class Normalization:
    """How uint8 RGB becomes the float image a backbone was trained on: ``(x - mean) / std`` for each channel.

    Args:
        mean: subtracted from values of 0..255, in the order of the output channels.
        std: divisor after that, in units of 0..255.
        bgr: whether the output channels are blue, green, red.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    @classmethod
    def named(cls, profile: str) -> Normalization:
        """Return the profile ``imagenet``, ``caffe`` or ``raw255``.

        Raises:
            UserError: the name is none of them.
        """
        if profile not in PROFILES:
            raise UserError(f"data.norm={profile}: unknown; choose one of {', '.join(PROFILES)}")
        return PROFILES[profile]

    @cached_property
    def table(self) -> FloatArray:
        """The normalised value of every grey value, float32 (3, 256)."""
        grey = np.arange(256, dtype=np.float64)
        rows = [(grey - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return np.stack(rows).astype(np.float32)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The RGB colour that is 0 once normalised, up to rounding: what padding shows."""
        red, green, blue = (round(value) for value in (reversed(self.mean) if self.bgr else self.mean))
        return red, green, blue

    def normalise(self, rgb: UInt8Array) -> Tensor:
        """Map uint8 (H, W, 3) RGB to a float32 (3, H, W) tensor."""
        planes = np.empty((3, *rgb.shape[:2]), dtype=np.float32)
        # Splitting and looking up writes each output value once; float arithmetic on HWC would take four passes.
        channels = cv2.split(rgb)
        for plane, channel, table in zip(planes, reversed(channels) if self.bgr else channels, self.table, strict=True):
            cv2.LUT(channel, table, dst=plane)
        return torch.from_numpy(planes)

    def denormalise(self, image: Tensor) -> UInt8Array:
        """Map a normalised (3, H, W) tensor back to uint8 (H, W, 3) RGB."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        grey = (image.detach().float().cpu() * std + mean).round().clamp(0, 255)
        if self.bgr:
            grey = grey.flip(0)
        return np.ascontiguousarray(grey.byte().permute(1, 2, 0).numpy())


PROFILES = {
    # torchvision's ImageNet weights: RGB in 0..1, then mean and standard deviation.
    "imagenet": Normalization((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    # Caffe's VGG weights: BGR in 0..255 minus the mean pixel of the FCN reference code.
    "caffe": Normalization((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), bgr=True),
    "raw255": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Transformed(NamedTuple):
    """What a transform returns."""

    image: Tensor  # float32 (3, H, W), normalised
    mask: Tensor  # int64 (H, W)
    boxes: FloatArray | None  # (N, 4 + extra columns) xyxy pixels; None where none were given


class TrainTransform:
    """Random scale, crop and flip of image, mask and boxes, then normalisation.

    Args:
        norm: the normalisation.
        crop_size: side of the square crop in pixels; None keeps the whole image.
        scale: range (low, high) of a random resize factor; None for 1.
        short_side: resize so that the shorter side has this many pixels, before ``scale``.
        squash: resize image and mask to this side in both directions, aspect ignored, before ``scale``.
        hflip: probability of a horizontal flip, 0..1.
        pad: colour of padding: ``mean`` (0 once normalised) or ``black``.

    Raises:
        UserError: a value makes no sense, such as a crop larger than every image.
    """

    def __init__(
        self,
        norm: Normalization,
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
        self.norm = norm
        self._fixed = crop_size is not None
        self._alike = squash is not None
        self._rescales = low != high
        fill = norm.fill if pad == "mean" else (0, 0, 0)
        window = RandomWindow(crop_size, (low, high), short_side, squash, fill)
        self._plain = pipeline(window, hflip, boxes=False)
        self._boxed = pipeline(window, hflip, boxes=True)

    def gives_one_size(self, inputs_alike: bool) -> bool:
        """Say whether all outputs have the same size, given whether all inputs have."""
        return self._fixed or ((self._alike or inputs_alike) and not self._rescales)

    def __call__(
        self, image: UInt8Array, mask: UInt8Array, seed: Sequence[int], boxes: FloatArray | None = None
    ) -> Transformed:
        """Transform one sample.

        Args:
            image: uint8 (H, W, 3) RGB.
            mask: uint8 (H, W) labels.
            seed: the numbers that decide all randomness, such as (seed, epoch, index).
            boxes: (N, 4 + extra) xyxy pixels; further columns are carried along.
        """
        if boxes is None:
            reseed(self._plain, seed)
            out = self._plain(image=image, mask=mask)
        else:
            reseed(self._boxed, seed)
            out = self._boxed(image=image, mask=mask, bboxes=boxes)
        return Transformed(self.norm.normalise(out["image"]), _label_tensor(out["mask"]), out.get("bboxes"))


class EvalTransform:
    """Normalisation alone; ``squash`` brings image and mask to one square size first.

    Args:
        norm: the normalisation.
        squash: side in pixels of the square that image (bilinear) and mask (nearest) are resized to, aspect ignored.
        centre: side of the square cut from the middle of that one; None for all of it. Boxes are not cut.
    """

    def __init__(self, norm: Normalization, squash: int | None = None, centre: int | None = None) -> None:
        self.norm = norm
        self.squash = squash
        self.centre = centre

    def __call__(
        self, image: UInt8Array, mask: UInt8Array, seed: Sequence[int], boxes: FloatArray | None = None
    ) -> Transformed:
        """Transform one sample; see `TrainTransform`. The seed changes nothing."""
        if self.squash:
            size = (self.squash, self.squash)
            if boxes is not None:
                height, width = mask.shape
                boxes = boxes.copy()
                boxes[:, :4] *= np.array([size[0] / width, size[1] / height] * 2, dtype=boxes.dtype)
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
            mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
            if self.centre:
                start = (self.squash - self.centre) // 2
                middle = slice(start, start + self.centre)
                image, mask = image[middle, middle], mask[middle, middle]
        return Transformed(self.norm.normalise(image), _label_tensor(mask), boxes)


def _label_tensor(mask: UInt8Array) -> Tensor:
    """Copy a uint8 mask, whatever its strides, into an int64 tensor."""
    return torch.from_numpy(mask.astype(np.int64))


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
