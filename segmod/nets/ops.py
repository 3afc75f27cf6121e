"""Resampling of score maps and other steps that nets and predictors share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal, NamedTuple

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
    maps: Sequence[Tensor],
    shares: Sequence[Tensor],
    hidden_bias: Tensor,
    size: tuple[int, int],
    weight: Tensor,
    bias: Tensor,
    align_corners: bool = False,
) -> Tensor:
    """Two linear layers with a ReLU between them on every pixel of maps that are resized bilinearly to one size.

    The first layer is applied to each map at its own size, and its responses are resized and added, for resizing is
    linear, too. On a CPU this is bound by memory, so it is done in strips of rows, and these in tiles that stay in the
    cache; likewise the gradient. What it holds besides maps and scores does not grow with the height, unless a gradient
    is to follow: for that, the hidden layer is kept.

    Args:
        maps: (B, C_i, h_i, w_i) each.
        shares: (D, C_i) each: those columns of the first layer's weight that are for this map.
        hidden_bias: (D,) of the first layer.
        size: (H, W) of the scores, in pixels.
        weight: (K, D) of the second layer.
        bias: (K,) of the second layer.
        align_corners: As in `resize`.

    Returns:
        (B, K, H, W).
    """
    if maps[0].device.type != "cpu" or torch.compiler.is_compiling():
        parts = zip(maps, shares, [None] * (len(maps) - 1) + [hidden_bias], strict=True)
        responses = [F.conv2d(part, share[:, :, None, None], own) for part, share, own in parts]
        total = torch.stack([resize(response, size, align_corners) for response in responses]).sum(0)
        return F.conv2d(F.relu(total), weight[:, :, None, None], bias)
    # the bias becomes the share of a channel of ones: interpolation leaves constants as they are
    maps = [*maps[:-1], torch.cat([maps[-1], torch.ones_like(maps[-1][:, :1])], dim=1)]
    shares = [*shares[:-1], torch.cat([shares[-1], hidden_bias[:, None]], dim=1)]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps[0].dtype
    inputs = [part.to(dtype) for part in (weight, bias, *shares, *maps)]
    keep = torch.is_grad_enabled()
    scores: Tensor = _ClassifyStrips.apply(size, align_corners, keep, *inputs)  # type: ignore[no-untyped-call]
    return scores


class _ClassifyStrips(torch.autograd.Function):
    """`classify_resized` on a CPU, of maps and shares that hold the bias.

    The rows of a map that a strip needs wait in ``wide``, resized to the width, in slots that later rows take over; so
    each row is made once, and one product of a strip's weights with all slots resizes and adds all maps.
    """

    @staticmethod
    def forward(
        ctx: Any, size: tuple[int, int], align_corners: bool, keep: bool, weight: Tensor, bias: Tensor, *rest: Tensor
    ) -> Tensor:
        shares, maps = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        whole = tuple(maps[0].shape[2:]) == tuple(size)  # then the first map is not resized, but added tile by tile
        images, depth = len(maps[0]), len(weight[0])
        strips = _strips([part.shape[2] for part in maps[whole:]], size, depth, align_corners, weight)
        wide = weight.new_zeros(strips[0].block.shape[1], size[1], depth)
        pixels = size[0] * size[1] if keep else max(where.stop - where.start for _, where in strips[0].tiles)
        hidden = weight.new_empty(images if keep else 1, pixels, depth)
        scores = weight.new_empty(images, len(weight), *size)
        for image in range(images):
            for strip in strips:
                for part, share, pieces in zip(maps[whole:], shares[whole:], strip.first, strict=True):
                    for rows, slots in pieces:
                        source = part[image, :, rows]
                        response = (_pixels(source) @ share.T).view(*source.shape[1:], depth)
                        _widen(response, wide[slots], align_corners)
                for columns, where in strip.tiles:
                    tile = hidden[image, where] if keep else hidden[0, : where.stop - where.start]
                    torch.mm(strip.block, wide[:, columns].flatten(1), out=tile.view(len(strip.block), -1))
                    if whole:
                        tile.addmm_(_pixels(maps[0][image, :, strip.rows, columns]), shares[0].T)
                    found = torch.addmm(bias[:, None], weight, tile.relu_().T)
                    scores[image, :, strip.rows, columns] = found.view(len(weight), len(strip.block), -1)
        ctx.save_for_backward(weight, hidden, *rest)
        ctx.whole, ctx.strips, ctx.align_corners = whole, strips, align_corners
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, *rest = ctx.saved_tensors
        shares, maps = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        exact = torch.promote_types(weight.dtype, torch.float32)  # sums of many parts are not left to bfloat16
        grad_weight, *grad_shares = (torch.zeros_like(part, dtype=exact) for part in (weight, *shares))
        wanted = ctx.needs_input_grad[-len(maps) :]
        grad_maps = [torch.empty_like(part) if own else None for part, own in zip(maps, wanted, strict=True)]
        wide = weight.new_zeros(ctx.strips[0].block.shape[1], grad.shape[3], len(weight[0]))

        def descend(number: int, upstream: Tensor, image: int, rows: slice, columns: slice) -> None:
            """Go on from the gradient (pixels, D) of the responses to a map to that of its share and its own."""
            source = maps[number][image, :, rows, columns]
            grad_shares[number] += (_pixels(source).T @ upstream).T
            if (own := grad_maps[number]) is not None:
                own[image, :, rows, columns] = (upstream @ shares[number]).T.view_as(source)

        for image in range(len(grad)):
            narrow = [weight.new_zeros(*part.shape[2:], len(weight[0])) for part in maps[ctx.whole :]]
            for strip in ctx.strips:
                for columns, where in strip.tiles:
                    tile, upstream = hidden[image, where], grad[image, :, strip.rows, columns].flatten(1)
                    grad_weight += upstream @ tile
                    upstream = upstream.T @ weight
                    torch.ops.aten.threshold_backward.grad_input(upstream, tile, 0, grad_input=upstream)  # rectified: 0
                    wide[:, columns].flatten(1).addmm_(strip.block.T, upstream.view(len(strip.block), -1))
                    if ctx.whole:
                        descend(0, upstream, image, strip.rows, columns)
                for own, pieces in zip(narrow, strip.last, strict=True):
                    for rows, slots in pieces:
                        own[rows] = _narrow(wide[slots], own.shape[1], ctx.align_corners)
                        wide[slots] = 0
            for number, own in enumerate(narrow, start=ctx.whole):
                descend(number, own.flatten(0, 1), image, slice(None), slice(None))
        return None, None, None, grad_weight, grad.sum((0, 2, 3)), *grad_shares, *grad_maps


class _Strip(NamedTuple):
    """Rows of the scores that are made together.

    Attributes:
        rows: Which.
        block: (rows, slots), how much what lies in each slot counts for each row.
        first: Of each map the rows that this strip is the first to need, in pieces, each with its slots.
        last: Of each map the rows that this strip is the last to need, likewise.
        tiles: Columns of each tile, and its place among the pixels of the image, tile after tile.
    """

    rows: slice
    block: Tensor
    first: list[list[tuple[slice, slice]]]
    last: list[list[tuple[slice, slice]]]
    tiles: list[tuple[slice, slice]]


_TILE = 2**18  # numbers of the hidden layer, 1 MiB: of 2**16 to 2**20 the fastest
_LEAST, _MOST = 8, 32  # rows of a strip: many calls if it is low, many weights of 0 if it is high


def _strips(
    heights: Sequence[int], size: tuple[int, int], depth: int, align_corners: bool, like: Tensor
) -> list[_Strip]:
    """The strips of an image (H, W) with a hidden layer of some depth, of maps with these heights."""
    height, width = size
    high = min(height, max(_LEAST, min(_MOST, _TILE // (width * depth))))
    broad = max(1, _TILE // (high * depth))
    spans = [slice(top, min(top + high, height)) for top in range(0, height, high)]
    blocks = [like.new_empty(height, 0)]
    first: list[list[list[tuple[slice, slice]]]] = [[] for _ in spans]
    last: list[list[list[tuple[slice, slice]]]] = [[] for _ in spans]
    for n in heights:
        one_hot = torch.eye(n).view(1, n, n, 1)
        weights = resize(one_hot, (height, 1), align_corners).view(n, height).T  # two neighbours in a row
        some = (weights != 0).int()
        starts = [int(some[rows.start].argmax()) for rows in spans]
        stops = [n - int(some[rows.stop - 1].flip(0).argmax()) for rows in spans]
        slots = max(stop - start for start, stop in zip(starts, stops, strict=True))
        block = torch.zeros(height, slots)
        for rows, start, stop in zip(spans, starts, stops, strict=True):
            block[rows, torch.arange(start, stop) % slots] = weights[rows, start:stop]
        offset = sum(part.shape[1] for part in blocks)
        for at, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            first[at].append(_pieces(max(start, stops[at - 1] if at else 0), stop, slots, offset))
            last[at].append(_pieces(start, min(stop, (*starts, n)[at + 1]), slots, offset))
        blocks.append(block.to(like.dtype))
    merged = torch.cat(blocks, 1)
    strips = []
    for at, rows in enumerate(spans):
        tall = rows.stop - rows.start
        tiles = [slice(left, min(left + broad, width)) for left in range(0, width, broad)]
        places = [slice(*(rows.start * width + tall * side for side in (tile.start, tile.stop))) for tile in tiles]
        strips.append(_Strip(rows, merged[rows], first[at], last[at], list(zip(tiles, places, strict=True))))
    return strips


def _pieces(start: int, stop: int, slots: int, offset: int) -> list[tuple[slice, slice]]:
    """Rows of a map in pieces whose slots are in sequence: row r lies in slot offset + r mod slots."""
    cuts = [start, *range(start // slots * slots + slots, stop, slots), stop]
    return [(slice(a, b), slice(offset + a % slots, offset + a % slots + b - a)) for a, b in pairwise(cuts) if a < b]


def _pixels(maps: Tensor) -> Tensor:
    """Maps (C, h, w) as (h * w, C)."""
    return maps.flatten(1).T


def _widen(rows: Tensor, out: Tensor, align_corners: bool) -> None:
    """Resize rows (h, w, D) to those of ``out``, (h, W, D)."""
    if rows.shape == out.shape:
        out.copy_(rows)
    else:
        torch.ops.aten.upsample_bilinear2d.out(_nchw(rows), out.shape[:2], align_corners, out=_nchw(out))


def _narrow(rows: Tensor, width: int, align_corners: bool) -> Tensor:
    """The gradient of `_widen`: of rows (h, W, D) to those of the width before, (h, width, D)."""
    before = len(rows), width
    if before == rows.shape[:2]:
        return rows
    grad = torch.ops.aten.upsample_bilinear2d_backward(
        _nchw(rows), rows.shape[:2], (1, rows.shape[2], *before), align_corners
    )
    return grad[0].permute(1, 2, 0)  # type: ignore[no-any-return]


def _nchw(rows: Tensor) -> Tensor:
    """Rows (h, w, D) as a batch (1, D, h, w), a view."""
    return rows[None].permute(0, 3, 1, 2)  # whose strides torch takes for channels last
