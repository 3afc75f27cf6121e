"""The first layer of every net: a photograph becomes what the backbone's weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segmod.ground.errors import UserError

Normalisation = str | Mapping[str, Sequence[float]]

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Mean colour of ImageNet, RGB in 0..255."""

_KINDS: dict[str, tuple[Sequence[float], Sequence[float], bool]] = {
    # torchvision's ImageNet weights: RGB in 0..1, then mean and standard deviation.
    "imagenet": (IMAGENET_MEAN, (0.229 * 255, 0.224 * 255, 0.225 * 255), False),
    # Caffe's VGG weights: BGR in 0..255 minus the mean pixel of the FCN reference code.
    "caffe": ((122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0), True),
    "raw255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False),
}


class Normalise(nn.Module):
    """``(image - mean) / std`` for each channel, and the channels in the order that the weights expect.

    It has no parameters, and its statistics are not part of a state dict: they belong to the net's config.

    Args:
        kind: ``imagenet`` (RGB, torchvision's statistics), ``caffe`` (BGR minus the mean pixel, not scaled), ``raw255``
            (as it is), or ``{mean: [r, g, b], std: [r, g, b]}`` in units of 0..255.

    Shape:
        (B, 3, H, W), RGB, uint8 or floating point in 0..255 -> (B, 3, H, W), floating point.

    Raises:
        UserError: There is no such kind, or a mean or std is not three numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: Normalisation = "imagenet") -> None:
        super().__init__()
        if isinstance(kind, str):
            if kind not in _KINDS:
                raise UserError(
                    f"model.net.normalise={kind}: choose {', '.join(_KINDS)}, for a training measured, "
                    "or give {mean: [...], std: [...]}"
                )
            mean, std, self.bgr = _KINDS[kind]
        else:
            if set(kind) != {"mean", "std"} or any(len(values) != 3 for values in kind.values()):
                raise UserError(f"model.net.normalise={dict(kind)}: give mean and std, three numbers each, of 0..255")
            mean, std, self.bgr = kind["mean"], kind["std"], False
            if min(std) <= 0:
                raise UserError(f"model.net.normalise.std={list(std)}: must be above 0")
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise an image (B, 3, H, W)."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        return normalised.flip(-3) if self.bgr else normalised

    def extra_repr(self) -> str:
        """The statistics, for the printed net."""
        mean, std = (", ".join(f"{value:g}" for value in stats.flatten().tolist()) for stats in (self.mean, self.std))
        return f"mean=({mean}), std=({std}), bgr={self.bgr}"
