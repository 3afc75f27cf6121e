"""Resampling of score maps and other steps that nets and predictors share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from segmod.ground.torch_private import BatchNorm
from segmod.ground.types import IGNORE_INDEX

Targets = Literal["majority", "nearest"]


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = False, antialias: bool = False) -> Tensor:
    """Resize maps bilinearly; maps that have the size already are returned as they are.

    Args:
        maps: (B, C, h, w), floating point.
        size: (H, W) wanted, in pixels.
        align_corners: Whether the centres of the corner pixels coincide (True), or the image borders do (False).
        antialias: Whether a smaller map averages all the pixels that it covers.

    Returns:
        (B, C, H, W).
    """
    if same_size(maps.shape[-2:], size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners, antialias=antialias)


def same_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; in an export, whose sizes are symbols, whether they are equal for every image."""
    if not torch.compiler.is_exporting():
        return tuple(one) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # half a second, which exports alone need

    return all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))


def round_up(side: int, multiple: int) -> int:
    """The least multiple of a number that is not below a side; not by ``-side``, whose quotient ONNX rounds to zero."""
    return (side + multiple - 1) // multiple * multiple


def recompute(layer: nn.Module, *inputs: Tensor) -> Any:
    """Output of a layer whose inner maps are not kept for the gradient but computed again: less memory, more time.

    The second time batch norm leaves its running statistics as they are, so training takes the very same course.
    """
    if not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _untracked(layer)))


@contextmanager
def _untracked(layer: nn.Module) -> Iterator[None]:
    """Keep the batch norms of a layer from updating their running statistics."""
    norms = [part for part in layer.modules() if isinstance(part, BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask, int64 (B, H, W), to (B, *size) by the nearest pixel, as the data's transforms do."""
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def box_labels(mask: Tensor, boxes: int, targets: Targets = "majority") -> Tensor:
    """Label the cells of a boxes x boxes grid over a mask, the targets of box-wise nets.

    Cell i of n in a side of N pixels holds the pixels floor(i N / n) to ceil((i + 1) N / n) - 1, as in torch's adaptive
    pooling: neighbours share a pixel where N / n is not whole.

    Args:
        mask: int64 (B, H, W), 255 = void.
        boxes: Cells in each direction.
        targets: ``majority``: the most frequent label among the pixels that are not void, the lowest of equally
            frequent ones; void if more than half of the pixels are. ``nearest``: the pixel at the centre of the cell.

    Returns:
        int64 (B, boxes, boxes).
    """
    if targets == "nearest":
        return nearest(mask, (boxes, boxes))
    labels = torch.unique(mask)  # few of all classes, in ascending order
    shares = F.adaptive_avg_pool2d((mask[:, None] == labels[:, None, None]).float(), boxes)
    void = shares[:, labels == IGNORE_INDEX].sum(1) > 0.5
    shares[:, labels == IGNORE_INDEX] = -1
    majority: Tensor = labels[shares.argmax(1)]  # argmax, not max: it takes the first of equals
    return majority.masked_fill(void, IGNORE_INDEX)


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


def contiguous(maps: Tensor) -> Tensor:
    """Maps without gaps in memory; in an export a copy, for whether there are gaps may depend on the size."""
    return maps.clone(memory_format=torch.contiguous_format) if torch.compiler.is_exporting() else maps.contiguous()


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


def classify_resized(
    maps: Sequence[Tensor], size: tuple[int, int], weight: Tensor, bias: Tensor, align_corners: bool = False
) -> Tensor:
    """Resize maps bilinearly to one size, add them, rectify the sum and put a linear layer on every pixel.

    On a CPU this is bound by memory, so it is done in strips of rows: all maps are added to a strip, and the strip is
    rectified and classified, while it is in the cache; likewise the gradient. Elsewhere maps are resized one by one.

    Args:
        maps: (B, h_i, w_i, C) each, contiguous. The first may be overwritten.
        size: (H, W) of the sum, in pixels.
        weight: (K, C) of the linear layer.
        bias: (K,) of the linear layer.
        align_corners: As in `resize`.

    Returns:
        (B, K, H, W).
    """
    upright = [part.permute(0, 3, 1, 2) for part in maps]
    if maps[0].device.type != "cpu" or torch.compiler.is_exporting():
        total = torch.stack([resize(part, size, align_corners) for part in upright]).sum(0)
        return F.conv2d(F.relu(total), weight[:, :, None, None], bias)
    wide = [resize(part, (part.shape[2], size[1]), align_corners).permute(0, 2, 3, 1).contiguous() for part in upright]
    linear = [part.to(maps[0].dtype) for part in (weight, bias)]  # under autocast the maps are bfloat16
    scores: Tensor = _ClassifyHeights.apply(size[0], align_corners, *linear, *wide)  # type: ignore[no-untyped-call]
    return scores


class _ClassifyHeights(torch.autograd.Function):
    """`classify_resized` for maps (B, h_i, W, C): heights are resized by bands of the interpolation matrix."""

    @staticmethod
    def forward(ctx: Any, height: int, align_corners: bool, weight: Tensor, bias: Tensor, *maps: Tensor) -> Tensor:
        first = maps[0]
        in_place = first.shape[1] == height
        # ``data`` and not the input itself: autograd would copy the gradient of an input that is a view and overwritten
        hidden = first.data if in_place else first.new_empty(len(first), height, *first.shape[2:])
        bands = [_bands(part.shape[1], height, align_corners, part) for part in maps[in_place:]]
        scores = hidden.new_empty(len(hidden), len(weight), *hidden.shape[1:3])
        for image, index, rows in _strips(hidden):
            strip = hidden[image, rows]
            for position, (part, band) in enumerate(zip(maps[in_place:], bands, strict=True)):
                inputs, block = band[index]
                strip.flatten(1).addmm_(block, part[image, inputs].flatten(1), beta=float(in_place or position > 0))
            pixels = strip.relu_().flatten(0, 1)
            scores[image, :, rows] = torch.addmm(bias[:, None], weight, pixels.T).view(-1, *strip.shape[:2])
        ctx.save_for_backward(weight, hidden)
        ctx.in_place, ctx.bands, ctx.heights = in_place, bands, [part.shape[1] for part in maps[in_place:]]
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden = ctx.saved_tensors
        grad_weights = []
        grad_first = [torch.empty_like(hidden)] if ctx.in_place else []
        grads = [hidden.new_zeros(len(hidden), height, *hidden.shape[2:]) for height in ctx.heights]
        for image, index, rows in _strips(hidden):
            strip, upstream = hidden[image, rows], grad[image, :, rows].flatten(1)
            grad_weights.append(upstream @ strip.flatten(0, 1))
            grad_strip = (upstream.T @ weight).view_as(strip).mul_(strip.sign())  # 0 where rectified
            if ctx.in_place:
                grad_first[0][image, rows] = grad_strip
            for part, band in zip(grads, ctx.bands, strict=True):
                inputs, block = band[index]
                part[image, inputs].flatten(1).addmm_(block.T, grad_strip.flatten(1))
        return None, None, torch.stack(grad_weights).sum(0), grad.sum((0, 2, 3)), *grad_first, *grads


_ROWS = 8  # of a strip: of 2, 4, 8, 16 and 32 the fastest at 224 columns of 512 float32


def _strips(maps: Tensor) -> Iterator[tuple[int, int, slice]]:
    """Strips of rows of maps (B, H, W, C): (image, number of the strip, its rows)."""
    for image in range(len(maps)):
        for index, start in enumerate(range(0, maps.shape[1], _ROWS)):
            yield image, index, slice(start, start + _ROWS)


def _bands(n: int, size: int, align_corners: bool, like: Tensor) -> list[tuple[slice, Tensor]]:
    """Interpolation of n values to ``size``, for each strip of the outputs: (the inputs it needs, their weights)."""
    one_hot = torch.eye(n, device=like.device).view(1, n, n, 1)
    weights = resize(one_hot, (size, 1), align_corners).view(n, size).T.to(like.dtype)  # two neighbours in a row
    bands = []
    for block in torch.split(weights, _ROWS):
        used = block.any(0).nonzero()
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((inputs, block[:, inputs]))
    return bands
