"""Scoring a large image window by window."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from segmod.ground.errors import require
from segmod.ground.types import Batch, Count, Side
from segmod.inference.dense import score_at

_SD = 1 / 8  # of a side: of the gaussian, as in nnU-Net (Isensee et al. 2021)


class SlidingPredictor:
    """Mean of the probabilities of overlapping windows, each scored by itself, so that no image is too large for a net.

    Windows lie evenly, the outer ones flush with the image's borders: nothing is padded. An image with a shorter side
    than the window has a window of its own side there, and one that a single window covers is scored as by
    `DensePredictor`, to the last bit. Near its edges a window sees only half of what a pixel's score depends on, so it
    counts less there with the gaussian; with flat weights its edges show in the labels.

    Besides the net's memory for one batch of windows there is the result, 4 * K bytes a pixel, which bounds the size.

    Args:
        window: Side in pixels of the square that the net sees, or (height, width).
        stride: Pixels from one window to the next, at most; or (down, right). None: half of the window.
        blending: Weights of a window's pixels: ``gaussian``, of an eighth of the sides, or ``flat``.
        batch_size: Windows that the net sees at a time.

    Raises:
        UserError: The stride leaves pixels between the windows.
    """

    def __init__(
        self,
        window: Side | tuple[Side, Side] = 512,
        stride: Side | tuple[Side, Side] | None = None,
        blending: Literal["gaussian", "flat"] = "gaussian",
        batch_size: Count = 1,
    ) -> None:
        self.window = _pair(window)
        self.stride = _pair(stride) if stride is not None else (ceil(self.window[0] / 2), ceil(self.window[1] / 2))
        require(
            self.stride[0] <= self.window[0] and self.stride[1] <= self.window[1],
            f"inference.stride={stride}: larger than inference.window={window}, which leaves gaps: take less",
        )
        self.blending = blending
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W)."""
        image = batch["image"]
        rows, columns = (self._places(axis, image.shape[axis - 2], image.device) for axis in (0, 1))
        total = image.new_zeros(len(image), int(net.num_classes), *image.shape[-2:], dtype=torch.float32)  # type: ignore[arg-type]
        places = [(row, column) for row in rows for column in columns]
        for start in range(0, len(places), self.batch_size):
            group = places[start : start + self.batch_size]
            seen = torch.cat([image[..., row, column] for (row, _), (column, _) in group])
            found = torch.split(score_at(net, seen, (seen.shape[2], seen.shape[3])), len(image))
            for ((row, down), (column, right)), scores in zip(group, found, strict=True):
                total[..., row, column].addcmul_(scores, down[:, None] * right)
        return total

    def _places(self, axis: int, side: int, device: torch.device) -> list[tuple[slice, Tensor]]:
        """Windows along an axis, and the weights of their pixels, which sum to 1 at every pixel of the side."""
        window = min(self.window[axis], side)
        steps = ceil((side - window) / self.stride[axis])
        starts = [(side - window) * i // max(1, steps) for i in range(steps + 1)]
        weights = torch.ones(window, dtype=torch.float64)
        if self.blending == "gaussian":
            weights = (-0.5 * ((torch.arange(window) - (window - 1) / 2) / (_SD * window)).double().square()).exp()
        places = [slice(start, start + window) for start in starts]
        total = torch.zeros(side, dtype=torch.float64)
        for place in places:
            total[place] += weights
        return [(place, (weights / total[place]).float().to(device)) for place in places]


def _pair(sides: Side | tuple[Side, Side]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])
