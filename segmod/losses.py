"""Losses that torch does not have: each maps (logits, mask) to a scalar."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmod.ground.types import IGNORE_INDEX


class BalancedCrossEntropy(nn.Module):
    """Cross-entropy in which every class that is present counts the same, however many pixels it has.

    The mean over the classes present in the batch of the mean negative log-likelihood of that class's pixels: most of
    a photo is background, and a plain mean learns it first and best. A batch without labelled pixels costs 0.

    It is computed in float32 also where the logits are of half precision.

    Args:
        ignore_index: Label of the pixels that do not count.

    Shape:
        logits (B, K, ...) and mask int64 (B, ...) -> scalar.
    """

    def __init__(self, ignore_index: Literal[255] = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        counts = torch.bincount(mask[mask != self.ignore_index], minlength=logits.shape[1])
        weights = 1 / counts.clamp_min(1).float()
        total = F.cross_entropy(logits.float(), mask, weights, ignore_index=self.ignore_index, reduction="sum")
        return total / (counts > 0).sum().clamp_min(1)


class OneVsRest(nn.Module):
    """Binary cross-entropy of each class against the rest: a sigmoid a class in place of one softmax over all.

    The mean over labelled pixels and classes; a batch without labelled pixels costs 0. Computed in float32.

    Args:
        ignore_index: Label of the pixels that do not count.

    Shape:
        logits (B, K, ...) and mask int64 (B, ...) -> scalar.
    """

    def __init__(self, ignore_index: Literal[255] = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Loss of a batch."""
        counted = mask != self.ignore_index
        truth = F.one_hot(mask.where(counted, 0), logits.shape[1]).movedim(-1, 1).float()
        losses = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").mean(1)
        return (losses * counted).sum() / counted.sum().clamp_min(1)
