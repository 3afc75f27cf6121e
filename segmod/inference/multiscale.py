"""Scoring a whole image at several scales and mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch, Factor, Side
from segmod.inference.dense import score_at


class MultiScalePredictor:
    """Mean of the probabilities over scales and, if asked, the mirrored image (as Chen et al. 2017, sec. 4.1).

    Differs from the paper: takes the mean over the scales where DeepLab takes the maximum; the mean remains a
    distribution over the classes.

    Args:
        scales: Factors of the image's sides.
        flip: Score the mirrored image too, at every scale.
        size: Side in pixels of the square that counts as scale 1; None takes the image's own shape.
    """

    def __init__(
        self, scales: Sequence[Factor] = (0.75, 1.0, 1.25), flip: bool = True, size: Side | None = None
    ) -> None:
        if not scales or min(scales) <= 0:
            raise UserError(f"inference.scales={list(scales)} must be one or more factors above 0")
        self.scales = tuple(scales)
        self.flip = flip
        self.size = size

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W)."""
        image = batch["image"]
        height, width = (self.size, self.size) if self.size is not None else (image.shape[-2], image.shape[-1])
        shapes = [(max(1, round(scale * height)), max(1, round(scale * width))) for scale in self.scales]
        total = torch.zeros((), device=image.device)  # a running sum holds one map, however many the scales
        for shape in shapes:
            total = total + score_at(net, image, shape)
            if self.flip:
                total += score_at(net, image.flip(-1), shape).flip(-1)
        return total / (len(shapes) * (2 if self.flip else 1))
