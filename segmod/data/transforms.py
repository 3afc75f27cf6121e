"""Joint transforms of image and mask. Images stay uint8 RGB: the net's first layer normalises them.

Randomness is a function of the seed handed in with each sample, so it depends on no worker, rank or interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmod.data.augment import augmentations
from segmod.ground.errors import require, whole
from segmod.ground.types import IGNORE_INDEX, UInt8Array

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
        antialias: let every pixel of an image count where it shrinks, see `resized`.
        augment: what is done after all this, see `augmentations`.

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
        antialias: bool = False,
        augment: Any = (),
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
        window = RandomWindow(crop_size, (low, high), short_side, squash, fill, antialias)
        self._pipeline = pipeline(window, hflip, augmentations(augment, crop_size or squash, fill))

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
        antialias: see `resized`.
    """

    def __init__(self, squash: int | None = None, centre: int | None = None, antialias: bool = False) -> None:
        self.squash = squash
        self.centre = centre
        self.antialias = antialias

    def __call__(self, image: UInt8Array, mask: UInt8Array, seed: Sequence[int]) -> Transformed:
        """Transform one sample; see `TrainTransform`. The seed changes nothing."""
        if self.squash:
            size = (self.squash, self.squash)
            image = resized(image, size, self.antialias)
            mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
            if self.centre:
                start = (self.squash - self.centre) // 2
                middle = slice(start, start + self.centre)
                image, mask = image[middle, middle], mask[middle, middle]
        return _tensors(image, mask)


def resized(image: UInt8Array, size: tuple[int, int], antialias: bool = False) -> UInt8Array:
    """Return an image at another size, bilinear.

    Args:
        image: uint8 (H, W, 3).
        size: (width, height) in pixels.
        antialias: where it shrinks, widen the kernel by as much, as PIL and MATLAB do; else some pixels count for
            nothing, as with OpenCV. Enlarging is the same.
    """
    if antialias:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


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


class RandomWindow(A.DualTransform):  # type: ignore[misc]
    """Resize by a random factor and take a random crop of the result, touching only the pixels that survive.

    The window is chosen in the source image and resized straight to the crop: its sides are rounded to whole source
    pixels, so the factor is met to within half a source pixel over the window. A crop larger than the resized image
    is padded, the image lying anywhere inside.

    Args:
        crop_size: side of the square output in pixels, or None for the whole resized image.
        scale: range of the random factor.
        short_side: the image is first resized so that its shorter side has this many pixels.
        squash: the image is first resized to this side in both directions, its aspect ignored.
        fill: RGB colour of padding. Masks are padded with `IGNORE_INDEX`.
        antialias: see `resized`.
    """

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(
        self,
        crop_size: int | None,
        scale: tuple[float, float],
        short_side: int | None,
        squash: int | None,
        fill: tuple[int, int, int],
        antialias: bool = False,
    ) -> None:
        super().__init__(p=1.0)
        self.crop_size = crop_size
        self.scale = scale
        self.short_side = short_side
        self.squash = squash
        self.fill = fill
        self.antialias = antialias

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose the window: source rows and columns, and the size they are brought to."""
        height, width = params["shape"][:2]
        factor = self.random_generator.uniform(*self.scale)
        if self.squash:
            factors = factor * self.squash / height, factor * self.squash / width
        elif self.short_side:
            factors = (factor * self.short_side / min(height, width),) * 2
        else:
            factors = factor, factor
        return {"rows": self._span(height, factors[0]), "columns": self._span(width, factors[1])}

    def _span(self, length: int, factor: float) -> tuple[int, int, int]:
        """Return (start, stop, output length) along one side; start < 0 or stop > length asks for padding."""
        if self.crop_size is None:
            return 0, length, max(1, round(length * factor))
        window = max(1, round(self.crop_size / factor))
        slack = length - window
        start = int(self.random_generator.integers(min(slack, 0), max(slack, 0), endpoint=True))
        return start, start + window, self.crop_size

    def apply(self, img: UInt8Array, rows: Any, columns: Any, **params: Any) -> UInt8Array:
        """Cut and resize the image, bilinear."""
        return _cut(img, rows, columns, partial(resized, antialias=self.antialias), self.fill)

    def apply_to_mask(self, mask: UInt8Array, rows: Any, columns: Any, **params: Any) -> UInt8Array:
        """Cut and resize the mask, nearest."""
        return _cut(mask, rows, columns, partial(cv2.resize, interpolation=cv2.INTER_NEAREST_EXACT), IGNORE_INDEX)


def pipeline(window: RandomWindow, hflip: float, further: Sequence[Any] = ()) -> A.Compose:
    """Return ``window`` followed by a horizontal flip and further transforms.

    Args:
        window: the scale and crop.
        hflip: probability of the flip.
        further: as `augmentations` makes them.
    """
    return A.Compose([window, A.HorizontalFlip(p=hflip), *further])


def reseed(compose: A.Compose, seed: Sequence[int]) -> None:
    """Make the next call of a pipeline a function of ``seed`` alone."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # Compose.set_random_seed would give all steps the same stream and so tie their draws together.
    for offset, step in enumerate(_steps(compose)):
        step.set_random_seed(state + offset)


def _steps(compose: A.BaseCompose) -> Iterator[Any]:
    """Yield each step of a pipeline, and after it those that are within it."""
    for step in compose.transforms:
        yield step
        if isinstance(step, A.BaseCompose):
            yield from _steps(step)


def _cut(source: UInt8Array, rows: Any, columns: Any, resize: Callable[..., Any], fill: Any) -> UInt8Array:
    """Resize ``source[rows, columns]`` to its output size; the part outside the source shows ``fill``."""
    inside: list[slice] = []
    sizes: list[int] = []
    borders: list[int] = []
    for length, (start, stop, out) in zip(source.shape[:2], (rows, columns), strict=True):
        first, last = max(start, 0), min(stop, length)
        before = round((first - start) * out / (stop - start))
        # A sliver of source next to much padding still fills one pixel.
        size = max(1, round((last - start) * out / (stop - start)) - before)
        before = min(before, out - size)
        inside.append(slice(first, last))
        sizes.append(size)
        borders += [before, out - before - size]
    part = source[inside[0], inside[1]]
    if part.shape[:2] != tuple(sizes):
        part = np.asarray(resize(part, (sizes[1], sizes[0])), dtype=np.uint8)
    if any(borders):
        top, bottom, left, right = borders
        padded = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)
        part = np.asarray(padded, dtype=np.uint8)
    return part


def _tensors(image: UInt8Array, mask: UInt8Array) -> Transformed:
    """Image and mask as tensors, on the same memory if that is whole and writable: the batch is where it is copied."""
    pixels, labels = (torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (image, mask))
    return Transformed(pixels.permute(2, 0, 1), labels)
