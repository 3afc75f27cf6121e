"""Scoring a whole image in one forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from segmod.ground.types import Batch, Side
from segmod.nets.ops import resize


class DensePredictor:
    """One forward pass, softmax, and back to the image's size.

    Args:
        size: Side in pixels of the square the image is squashed to before the net sees it, as in training with
            ``data.squash``; None scores it at its own size.
    """

    def __init__(self, size: Side | None = None) -> None:
        self.size = size

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W)."""
        return score_at(net, batch["image"], self._shape(batch["image"]))

    def logits(self, net: nn.Module, batch: Batch) -> Tensor:
        """What the net says before the softmax, float32 (B, K, H, W) at the image's size."""
        image = batch["image"]
        return resize(net(resize(image.float(), self._shape(image))).float(), (image.shape[-2], image.shape[-1]))

    def _shape(self, image: Tensor) -> tuple[int, int]:
        return (self.size, self.size) if self.size is not None else (image.shape[-2], image.shape[-1])


def score_at(net: nn.Module, image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Score an image resized to another shape; the probabilities come back at the image's own.

    Args:
        net: Maps image (B, 3, h, w) to logits (B, K, h, w).
        image: (B, 3, H, W), RGB in 0..255.
        shape: (h, w) the net sees, in pixels.

    Returns:
        Probabilities, float32 (B, K, H, W), also where the net runs in half precision.
    """
    # without anti-aliasing, as the training transforms resize
    logits = net(resize(image.float(), shape))
    return resize(logits.float().softmax(1), (image.shape[-2], image.shape[-1]))
