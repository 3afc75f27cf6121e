"""What a trained run says of an image, kept small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from segmod.ground.palettes import Legend
    from segmod.ground.types import FloatArray, UInt8Array


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of an image.

    The probabilities of all classes at the size of a large image take gigabytes: they are kept at the size they were
    scored at, and labels are made of them class by class.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        scores: Probabilities as the net saw the image, float32 (K, h, w), on the CPU.
        legend: Names and colours of the labels.
    """

    image: UInt8Array
    scores: Tensor
    legend: Legend

    @cached_property
    def labels(self) -> UInt8Array:
        """The most probable class of each pixel, uint8 (H, W)."""
        maps = self.maps()
        best = next(maps).copy()  # for it is changed
        labels = np.zeros(best.shape, dtype=np.uint8)
        for label, found in enumerate(maps, start=1):
            labels[found > best] = label
            np.maximum(best, found, out=best)
        return labels

    @property
    def probabilities(self) -> FloatArray:
        """Those of all classes at the size of the image, float32 (K, H, W)."""
        return np.stack(list(self.maps()))

    def maps(self) -> Iterator[FloatArray]:
        """The probability of one class after the other at the size of the image, float32 (H, W)."""
        from segmod.nets.ops import resize

        height, width = self.image.shape[:2]
        for scores in self.scores:
            yield resize(scores[None, None], (height, width))[0, 0].numpy()

    def overlay(self) -> UInt8Array:
        """The labels' colours over the image, uint8 (H, W, 3) RGB."""
        from segmod import viz

        return viz.overlay(self.image, self.labels, self.legend.palette)

    def _repr_png_(self) -> bytes:
        """The overlay, as a notebook shows it."""
        from io import BytesIO

        from PIL import Image

        file = BytesIO()
        Image.fromarray(self.overlay()).save(file, "png")
        return file.getvalue()
