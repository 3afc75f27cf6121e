"""What every folder of segmod agrees on: arrays, ranges, samples, batches, predictors and sources of boxes.

Imports torch for the type checker alone, so that a command's ``--help`` need not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Protocol, TypedDict, runtime_checkable

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

UInt8Array = NDArray[np.uint8]  # images (H, W, 3) RGB, masks (H, W)
FloatArray = NDArray[np.float32]

# Ranges, for signatures: what a config gives is checked against them before anything is built.
Count = Annotated[int, Ge(1)]
Amount = Annotated[int, Ge(0)]
Side = Annotated[int, Ge(1), Le(2**14)]  # pixels; a square of the most is 0.8 GB
Channels = Annotated[int, Ge(1), Le(2**16)]
Images = Annotated[int, Ge(1), Le(10**7)]  # whose names are all held in memory
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Factor = Annotated[float, Gt(0), Le(100)]  # of sides or channels
Processes = Annotated[int, Ge(0), Le(256)]
Text = Annotated[str, MinLen(1)]

IGNORE_INDEX: Final = 255
"""Label of void pixels: they enter no loss and no metric."""


class Sample(TypedDict):
    """One image of a dataset, as the transforms hand it to the collate function."""

    image: Tensor  # uint8 (3, H, W), RGB
    mask: Tensor  # uint8 (H, W), IGNORE_INDEX = void
    name: str  # id of the image, for messages and files
    index: int  # position in the dataset


class Batch(TypedDict):
    """What a module or predictor receives."""

    image: Tensor  # (B, 3, H, W), RGB in 0..255: uint8 from a dataset, floating point once resized
    mask: Tensor  # uint8 (B, H, W), IGNORE_INDEX = void; absent truth is all IGNORE_INDEX
    name: list[str]
    index: Tensor  # int64 (B,)


@runtime_checkable
class Predictor(Protocol):
    """How a whole image is scored. Predictors nest: a CRF wraps one, an ensemble several."""

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Return class probabilities, float32 (B, K, H, W) at the size of ``batch['image']``."""
        ...


@runtime_checkable
class ProposalSource(Protocol):
    """Where boxes come from that may hold an object: a method, a file, the ground truth."""

    def __call__(
        self, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None
    ) -> NDArray[np.float32]:
        """Return boxes, best first: float32 (N, 5), x1 y1 x2 y2 in pixels (x2, y2 exclusive) and a score.

        Args:
            name: id of the image; empty for an image without one, whose boxes are not kept.
            image: uint8 (H, W, 3), RGB.
            mask: uint8 (H, W) labels where the truth is known.
        """
        ...


def labels_of(scores: Tensor) -> Tensor:
    """Most probable class of each pixel: the first of equal ones, and the first that is NaN if one is.

    On a CPU class by class, each compared with the best so far: ``max`` over the channels takes two to three times as
    long, and ``argmax`` ten times.

    Args:
        scores: (B, K, H, W) probabilities or logits.

    Returns:
        int64 (B, H, W).
    """
    import torch

    scores = scores.detach()
    if scores.device.type == "cpu" and scores.shape[1] <= 256 and not torch.compiler.is_compiling():
        best = scores[:, 0].clone()
        labels, wins = (torch.zeros(best.shape, dtype=kind) for kind in (torch.uint8, torch.bool))
        for label in range(1, scores.shape[1]):
            torch.gt(scores[:, label], best, out=wins)
            torch.maximum(best, scores[:, label], out=best)
            torch.maximum(labels, wins.view(torch.uint8).mul_(label), out=labels)  # no later label is smaller
        if not best.isnan().any():  # which is larger than nothing, and stays
            return labels.long()
    return scores.max(dim=1).indices


def fitted(height: int, width: int, longest: int, enlarge: bool = False) -> tuple[int, int]:
    """Height and width of an image whose longer side is to have at most so many pixels, or just as many."""
    factor = longest / max(height, width)
    factor = factor if enlarge else min(1.0, factor)
    return max(1, round(factor * height)), max(1, round(factor * width))


def picture_of(image: Tensor) -> UInt8Array:
    """The picture that an image tensor holds.

    Args:
        image: (3, H, W), RGB in 0..255, uint8 or floating point, on any device.

    Returns:
        uint8 (H, W, 3), contiguous.
    """
    whole = image.round().clamp(0, 255) if image.is_floating_point() else image
    return np.ascontiguousarray(whole.byte().permute(1, 2, 0).cpu().numpy())
