"""Resampling of score maps: what nets and predictors share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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


def resized_sum(maps: Sequence[Tensor], size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Sum of maps, each resized bilinearly to one size; maps have their channels last.

    On a CPU this is bound by memory, so the sum is built strip by strip, and all maps are added to a strip while it is
    in the cache. Elsewhere maps are resized one by one.

    Args:
        maps: (B, h_i, w_i, C) each, contiguous. The first may be overwritten.
        size: (H, W) of the sum, in pixels.
        align_corners: As in `resize`.

    Returns:
        (B, H, W, C).
    """
    if maps[0].device.type != "cpu":
        resized = [resize(part.permute(0, 3, 1, 2), size, align_corners).permute(0, 2, 3, 1) for part in maps]
        return torch.stack(resized).sum(0) if len(resized) > 1 else resized[0]
    wide = [
        resize(part.permute(0, 3, 1, 2), (part.shape[1], size[1]), align_corners).permute(0, 2, 3, 1).contiguous()
        for part in maps
    ]
    total: Tensor = _SumOfHeights.apply(size[0], align_corners, *wide)  # type: ignore[no-untyped-call]
    return total


class _SumOfHeights(torch.autograd.Function):
    """Sum of maps (B, h_i, W, C), each resized to one height: products with bands of the interpolation matrix."""

    @staticmethod
    def forward(ctx: Any, height: int, align_corners: bool, *maps: Tensor) -> Tensor:
        first = maps[0]
        in_place = first.shape[1] == height
        # ``data`` and not the input itself: autograd would copy the gradient of an input that is a view and overwritten
        total = first.data if in_place else first.new_empty(len(first), height, *first.shape[2:])
        parts = [(part.flatten(2), _bands(part.shape[1], height, align_corners, part)) for part in maps[in_place:]]
        for image, rows in enumerate(total.flatten(2)):
            for strip in zip(*(bands for _, bands in parts), strict=True):
                for position, (out, into, block) in enumerate(strip):
                    rows[out].addmm_(block, parts[position][0][image, into], beta=float(in_place or position > 0))
        ctx.align_corners, ctx.heights, ctx.in_place = align_corners, [part.shape[1] for part in maps], in_place
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        grads = [grad] if ctx.in_place else []
        for height in ctx.heights[ctx.in_place :]:
            part = grad.new_zeros(len(grad), height, *grad.shape[2:])
            for out, into, block in _bands(height, grad.shape[1], ctx.align_corners, grad):
                for image, rows in enumerate(part.flatten(2)):
                    rows[into].addmm_(block.T, grad[image, out].flatten(1))
            grads.append(part)
        return None, None, *grads


def _bands(n: int, size: int, align_corners: bool, like: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """Interpolation of n values to ``size`` in bands of 8 outputs: (outputs, the inputs they need, their weights)."""
    one_hot = torch.eye(n, device=like.device).view(1, n, n, 1)
    weights = resize(one_hot, (size, 1), align_corners).view(n, size).T.to(like.dtype)  # two neighbours in a row
    bands = []
    for start in range(0, size, 8):
        out = slice(start, min(start + 8, size))
        used = weights[out].any(0).nonzero()
        into = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((out, into, weights[out, into]))
    return bands
