"""The albumentations pipeline: random scale, crop and flip of image and mask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from segmod.ground.types import IGNORE_INDEX, UInt8Array

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A


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
    """

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(
        self,
        crop_size: int | None,
        scale: tuple[float, float],
        short_side: int | None,
        squash: int | None,
        fill: tuple[int, int, int],
    ) -> None:
        super().__init__(p=1.0)
        self.crop_size = crop_size
        self.scale = scale
        self.short_side = short_side
        self.squash = squash
        self.fill = fill

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
        return _cut(img, rows, columns, cv2.INTER_LINEAR, self.fill)

    def apply_to_mask(self, mask: UInt8Array, rows: Any, columns: Any, **params: Any) -> UInt8Array:
        """Cut and resize the mask, nearest."""
        return _cut(mask, rows, columns, cv2.INTER_NEAREST_EXACT, IGNORE_INDEX)


def pipeline(window: RandomWindow, hflip: float) -> A.Compose:
    """Return ``window`` followed by a horizontal flip.

    Args:
        window: the scale and crop.
        hflip: probability of the flip.
    """
    return A.Compose([window, A.HorizontalFlip(p=hflip)])


def reseed(compose: A.Compose, seed: Sequence[int]) -> None:
    """Make the next call of a pipeline a function of ``seed`` alone."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # Compose.set_random_seed would give all steps the same stream and so tie their draws together.
    for offset, step in enumerate(compose.transforms):
        step.set_random_seed(state + offset)


def _cut(source: UInt8Array, rows: Any, columns: Any, interpolation: int, fill: Any) -> UInt8Array:
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
        part = np.asarray(cv2.resize(part, (sizes[1], sizes[0]), interpolation=interpolation), dtype=np.uint8)
    if any(borders):
        top, bottom, left, right = borders
        padded = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)
        part = np.asarray(padded, dtype=np.uint8)
    return part
