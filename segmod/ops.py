"""Resampling of score maps: what nets and predictors share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize maps bilinearly; maps that have the size already are returned as they are.

    Args:
        maps: (B, C, h, w), floating point.
        size: (H, W) wanted, in pixels.
        align_corners: Whether the centres of the corner pixels coincide (True), or the image borders do (False).

    Returns:
        (B, C, H, W).
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def crop(maps: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    """Cut a window out of maps, as Caffe's ``Crop`` layer does.

    Args:
        maps: (B, C, h, w).
        offset: First row and first column of the window.
        size: (H, W) of the window; ``offset + H <= h`` and ``offset + W <= w``.

    Returns:
        (B, C, H, W), a view.
    """
    height, width = size
    return maps[..., offset : offset + height, offset : offset + width]


def bilinear_kernel(size: int) -> Tensor:
    """Weights with which a transposed convolution interpolates bilinearly (Long et al. 2015, section 3.3).

    The weight at distance d from the kernel's centre is ``1 - d / f`` in each direction, with ``f = (size + 1) // 2``.

    Args:
        size: Side of the kernel in pixels.

    Returns:
        float32 (size, size).
    """
    factor = (size + 1) // 2
    centre = (size - 1) / 2 if size % 2 else factor - 0.5
    weights = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    return torch.outer(weights, weights)


class BilinearUpsample(nn.Module):
    """Upsample by an integer factor with a bilinear transposed convolution, each channel by itself.

    This is FCN's "deconvolution" layer. The reference net stores it as a dense channels x channels kernel of which only
    the diagonal is not zero; a grouped convolution computes the same about eight times as fast. A frozen kernel is
    recomputed rather than stored, so checkpoints of frozen and learned nets differ by the learned kernels alone.

    Differs from the paper: a learned kernel has no weights between channels.

    Args:
        channels: Number of channels.
        factor: Upsampling factor; the kernel is 2 * factor pixels wide.
        learn: Whether the kernel is a parameter that starts bilinear (True) or stays fixed (False).

    Shape:
        (B, channels, h, w) -> (B, channels, (h + 1) * factor, (w + 1) * factor): ``factor // 2`` rows and columns at
        either end reach beyond the input, and it is the caller who crops.
    """

    weight: Tensor

    def __init__(self, channels: int, factor: int, learn: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.factor = factor
        weight = bilinear_kernel(2 * factor).expand(channels, 1, -1, -1).clone()
        if learn:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Upsample maps (B, C, h, w) to (B, C, (h + 1) * factor, (w + 1) * factor)."""
        return F.conv_transpose2d(maps, self.weight, stride=self.factor, groups=self.channels)

    def extra_repr(self) -> str:
        """Channels and factor, for the printed net."""
        return f"{self.channels}, factor={self.factor}, learn={isinstance(self.weight, nn.Parameter)}"
