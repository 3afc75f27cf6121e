"""Hypercolumns: every pixel classified from the maps of several layers of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Channels, Factor, Side
from segmod.nets.backbones import feature_maps, last_layers, map_shapes
from segmod.nets.normalise import Normalisation, Normalise
from segmod.nets.ops import classify_resized, resize, same_size
from segmod.nets.tracing import SIDE

_EPS = 1e-5
_LEAST = 1e-3  # of its tap's median: a channel with a smaller deviation says nothing


class Hypercolumn(nn.Module):
    """Two-layer pixel classifier on hypercolumns (Hariharan et al. 2015, sections 2 and 3.2).

    The hypercolumn of a pixel is what the taps, resized to the image, hold at that pixel: Z channels. Standardised,
    (x - mean) / (std + 1e-5), it goes through Linear(Z, hidden), ReLU and Linear(hidden, K). Resizing and the first
    layer are both linear, so `forward` never builds the hypercolumns: it applies the first layer's columns of each tap
    at that tap's own resolution and resizes the responses, the paper's "upsample the responses and add" (section 3.2).

    With ``grid`` > 1, each cell of a grid x grid partition of the image has a classifier of its own, and a pixel's
    class probabilities are interpolated between the cells around it: p = sum_k alpha_k softmax_k (section 2.3). The
    net then returns log p, whose softmax is p and whose cross-entropy is the negative log-likelihood of p. ``grid=1``
    is the plain net.

    Differs from the paper: a softmax over all classes on whole images instead of figure against ground in boxes, and a
    hidden layer where the paper's classifiers are linear.

    Args:
        num_classes: Number of classes K.
        backbone: Name of a classification net of torchvision; of timm, behind ``timm/``; or ``tiny``.
        taps: Names of its layers whose maps make up the hypercolumn, from shallow to deep. That of a convolution is
            from before its ReLU. None for the last layer at each stride.
        weights: Of the backbone: name of pretrained weights, file path, or None for random values.
        width: Factor on the backbone's numbers of channels.
        hidden: Width of the hidden layer.
        align_corners: How taps are resized: corner pixels coincide (True), or cells are centred, as in the paper.
        grid: Cells in each direction.
        grid_out: Side of the square raster on which the grid's probabilities are computed before they are resized to
            the image (50 in the paper); None for every pixel of the image.
        score_relu: Put a ReLU on the class scores, as one public reimplementation does.
        freeze_backbone: Keep the backbone as it is: no gradients, and batch norm in evaluation mode.
        normalise: What the backbone's weights expect of pixels, see `Normalise`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str,
        taps: Sequence[str] | None = None,
        weights: str | None = None,
        width: Factor = 1.0,
        hidden: Channels = 512,
        align_corners: bool = True,
        grid: Annotated[int, Ge(1), Le(64)] = 1,
        grid_out: Side | None = None,
        score_relu: bool = False,
        freeze_backbone: bool = True,
        normalise: Normalisation = "imagenet",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise(normalise)
        self.align_corners = align_corners
        self.grid = grid
        self.grid_out = grid_out
        self.score_relu = score_relu
        self.freeze_backbone = freeze_backbone
        taps = list(last_layers(backbone).values()) if taps is None else taps
        if not taps:
            raise UserError("model.net.taps=[]: name at least one layer of the backbone")
        self.backbone = feature_maps(backbone, taps, weights, width, normalise=self.normalise)
        self.backbone.requires_grad_(not freeze_backbone)
        self.taps = tuple(taps)
        shapes = map_shapes(self.backbone, SIDE)
        self.tap_channels = [shapes[tap][0] for tap in taps]
        self.channels = sum(self.tap_channels)
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))
        self.hidden = nn.Linear(self.channels, hidden)
        self.score = nn.Linear(hidden, num_classes * grid**2)
        self.train()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, 3, H, W)."""
        size = (image.shape[2], image.shape[3])
        raster = (self.grid_out, self.grid_out) if self.grid_out else size
        scores = self._score_maps(self._taps(image), raster)
        scores = _mix(scores, self._cell_weights(raster), dim=1)  # (B, K, h, w)
        if not same_size(raster, size):
            p = resize(scores.softmax(1), size)
            return p.clamp_min(torch.finfo(p.dtype).tiny).log()
        return scores

    def point_features(self, image: Tensor, points: Tensor) -> Tensor:
        """Hypercolumns at chosen pixels, not standardised.

        Args:
            image: (B, 3, H, W).
            points: int64 (B, P, 2), row and column.

        Returns:
            (B, P, Z).
        """
        size = torch.tensor(image.shape[-2:], device=points.device)
        centred = 2 * points / (size - 1).clamp_min(1) - 1 if self.align_corners else (2 * points + 1) / size - 1
        taps = self._taps(image)
        where = centred.flip(-1).unsqueeze(1).to(taps[0].dtype)  # (B, 1, P, 2), column before row
        columns = [
            F.grid_sample(tap, where, mode="bilinear", padding_mode="border", align_corners=self.align_corners)
            for tap in taps
        ]
        return torch.cat(columns, dim=1).squeeze(2).transpose(1, 2)

    def point_cells(self, image: Tensor, points: Tensor) -> Tensor:
        """How much each cell of the grid counts at chosen pixels, summing to 1 over the cells.

        Args:
            image: (B, 3, H, W), of which only the size matters.
            points: int64 (B, P, 2), row and column.

        Returns:
            (B, P, grid**2).
        """
        cells = self._cell_weights((image.shape[2], image.shape[3])).squeeze(0)
        return cells[:, points[..., 0], points[..., 1]].permute(1, 2, 0)

    def classify(self, features: Tensor, cells: Tensor) -> Tensor:
        """Logits (..., K) of hypercolumns (..., Z) at places that the cells (..., grid**2) tell."""
        standardised = (features - self.mean) / (self.std + _EPS)
        scores = self._rectify(self.score(F.relu(self.hidden(standardised))))
        return _mix(scores, cells, scores.dim() - 1)

    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics by which hypercolumns are standardised.

        A channel that hardly varies, by less than a thousandth of its tap's median, is left unscaled: ImageNet weights
        of SqueezeNet hold such channels, and divided by next to nothing they would drown all others as soon as the
        backbone is trained.

        Args:
            mean: (Z,).
            std: (Z,).
        """
        self.mean.copy_(mean)
        taps = [torch.where(tap <= _LEAST * tap.median(), 1.0, tap) for tap in torch.split(std, self.tap_channels)]
        self.std.copy_(torch.cat(taps))

    def train(self, mode: bool = True) -> Hypercolumn:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def _taps(self, image: Tensor) -> list[Tensor]:
        maps = self.backbone(self.normalise(image))
        return [maps[tap] for tap in self.taps]

    def _score_maps(self, taps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Scores (B, K * grid**2, H, W), the taps combined after their share of the hidden layer."""
        weight = self.hidden.weight / (self.std + _EPS)  # the standardisation, folded into the layer
        bias = self.hidden.bias - (weight * self.mean).sum(1)  # a sum stays in float32 under autocast
        shares = torch.split(weight, self.tap_channels, dim=1)
        # taps of one size go through the layer as one map: the fewer maps to resize (the size by its text, for in an
        # export it is a symbol)
        same = groupby(zip(taps, shares, strict=True), key=lambda pair: tuple(map(str, pair[0].shape[2:])))
        merged = ([_joined(parts) for parts in zip(*pairs, strict=True)] for _, pairs in same)
        maps, columns = zip(*merged, strict=True)
        scores = classify_resized(maps, columns, bias, size, self.score.weight, self.score.bias, self.align_corners)
        return self._rectify(scores)

    def _rectify(self, scores: Tensor) -> Tensor:
        return F.relu(scores) if self.score_relu else scores

    def _cell_weights(self, size: tuple[int, int]) -> Tensor:
        """How much each cell of the grid counts at each pixel, (1, cells, H, W), summing to 1 over the cells.

        Interpolating between the centres of cells is resizing the grid of one-hot vectors (section 2.3).
        """
        cells = self.grid**2
        one_hot = torch.eye(cells, device=self.mean.device).view(1, cells, self.grid, self.grid)
        return resize(one_hot, size)


def _mix(scores: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Log of the mean probability of the cells' classifiers; with one cell, the scores themselves.

    Args:
        scores: cells * K of them along ``dim``, cell by cell.
        weights: Of the cells, along ``dim``; the other dimensions are those of the scores, or 1.
        dim: The dimension, counted from the front.

    Returns:
        As the scores, with K along ``dim``.
    """
    cells = weights.shape[dim]
    if cells == 1:
        return scores
    log_p = torch.unflatten(scores, dim, (cells, -1)).log_softmax(dim + 1)
    return torch.logsumexp(log_p + weights.log().unsqueeze(dim + 1), dim)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors put together along the channels; a single one is not copied."""
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]
